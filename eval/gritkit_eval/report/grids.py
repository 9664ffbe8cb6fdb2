"""The tables of a report as rows of cells, from which the page and the Markdown are both written.

This module knows nothing about markup.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gritkit_eval.report.gathered import Gathered, Measure, Run
from gritkit_eval.report.notes import Made
from gritkit_eval.report.standings import CONTESTS, Group, alike, best, overall_of, ratio_to
from gritkit_eval.report.words import duration, figure, ratio

_MADE = ("Run", "Kind", "Fingerprint", "Tasks", "Settings", "Versions", "Machine", "Made", "Took")


@dataclass(frozen=True)
class Cell:
    """What stands in a cell, and what its column is sorted by."""

    text: str
    value: float | None = None
    """None for words."""
    best: bool = False
    worse: bool = False
    note: str = ""
    """Small, after the text."""


@dataclass(frozen=True)
class Head:
    """Of a column."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Grid:
    """A table; the first cell of a row names it."""

    title: str
    heads: Sequence[Head]
    rows: Sequence[Sequence[Cell]]
    foot: Sequence[Sequence[Cell]] = ()
    """Rows that are not sorted with the others."""


def summaries(groups: Sequence[Group], kind: str, baseline: Run | None) -> list[Grid]:
    """Runs by task types of one kind: averages, what they come to, ratios to the baseline; the best runs first. One
    table for each way in which tasks were asked."""
    parts = alike(groups, kind)
    title = f"{kind}: averages by task type"
    titles = [f"{title}, {mine[0].asked}" if len(parts) > 1 else title for mine in parts]
    return [_summary(mine, kind, baseline, named) for mine, named in zip(parts, titles, strict=True)]


def _summary(mine: Sequence[Group], kind: str, baseline: Run | None, title: str) -> Grid:
    columns: list[tuple[Head, Callable[[Run], float], bool]] = [
        (Head(group.name, group.of_tasks), group.average, group.rising) for group in mine
    ]
    overall = overall_of(mine, kind)
    if overall is not None:
        types, tasks = f"{len(overall.groups)} types", f"{overall.num_tasks} tasks"
        columns += [(Head("Mean", types), overall.by_type, True), (Head("Mean", tasks), overall.by_task, True)]
    runs = list(dict.fromkeys(run for group in mine for run in group.runs))
    values = [[value_of(run) for run in runs] for _, value_of, _ in columns]
    marked = [best(column, rising=columns[place][2], kind=kind) for place, column in enumerate(values)]
    ordered = _best_first(values, [rising for _, _, rising in columns], len(runs), from_last=overall is not None)
    at = runs.index(baseline) if baseline in runs else None
    rows = [
        [
            Cell(runs[row].name, note="baseline" if row == at else ""),
            *(
                _number(column[row], row in marked[place], math.nan if at in (None, row) else column[at])
                for place, column in enumerate(values)
            ),
        ]
        for row in ordered
    ]
    return Grid(title, [Head("Run"), *(head for head, _, _ in columns)], rows)


def _best_first(values: Sequence[Sequence[float]], rising: Sequence[bool], num: int, *, from_last: bool) -> list[int]:
    """By the overall mean where there is one, else by the first column."""
    place = len(values) - 2 if from_last else 0

    def order(row: int) -> tuple[bool, float]:
        value = values[place][row]
        return (not math.isfinite(value), -value if rising[place] else value)

    return sorted(range(num), key=order)


def detail(group: Group, baseline: Run | None) -> Grid:
    """Every task of a group by every run; the average below, or beside where many runs did few tasks."""
    gathered, common = group.gathered, set(group.common)
    scores = [[gathered.score(measure, run) for run in group.runs] for measure in group.measures]
    cells = [
        [_number(value, place in marked) for place, value in enumerate(row)]
        for row in scores
        for marked in [best(row, rising=group.rising, kind=group.kind)]
    ]
    averages = [group.average(run) for run in group.runs]
    marked = best(averages, rising=group.rising, kind=group.kind)
    against = math.nan if baseline not in group.runs else group.average(baseline)
    last = [
        _number(value, place in marked, math.nan if run == baseline else against)
        for place, (run, value) in enumerate(zip(group.runs, averages, strict=True))
    ]
    names = [
        Cell(gathered.label(one), note=_about(one, gathered.label(one), counts=one in common or not common))
        for one in group.measures
    ]
    title = f"{group.name}, {', '.join(dict.fromkeys(one.metric for one in group.measures))}"
    if len(group.runs) > max(8, len(group.measures)):
        heads = [Head("Run"), *(Head(one.text, one.note) for one in names), Head("Average", group.of_tasks)]
        rows = [[Cell(run.name), *(row[place] for row in cells), last[place]] for place, run in enumerate(group.runs)]
        return Grid(title, heads, rows)
    heads = [Head("Task"), *(Head(run.name, "baseline" if run == baseline else "") for run in group.runs)]
    foot = [[Cell("Average", note=group.of_tasks), *last]] if len(group.measures) > 1 else []
    return Grid(title, heads, [[name, *row] for name, row in zip(names, cells, strict=True)], foot)


def _about(measure: Measure, label: str, *, counts: bool) -> str:
    """Which of a task's examples were asked, unless its label says so, and whether the average counts it."""
    known = not measure.data or measure.asked in label
    return ", ".join([measure.asked] * (not known) + ["not averaged"] * (not counts))


def figures(gathered: Gathered, kind: str) -> Grid | None:
    """All that was measured of a kind, where that is several metrics; None for contests, whose metrics are many."""
    cells = {key: one for key, one in gathered.cells.items() if key[0].kind == kind}
    names = list(dict.fromkeys(name for one in cells.values() for name in one.scores))
    if kind in CONTESTS or len(names) < 2:
        return None
    rows = [
        [
            Cell(run.name),
            Cell(gathered.label(measure)),
            *(_number(one.scores.get(name, math.nan)) for name in names),
        ]
        for (measure, run), one in cells.items()
    ]
    return Grid(f"{kind}: all figures", [Head("Run"), Head("Task"), *map(Head, names)], rows)


def made(lines: Sequence[Made]) -> Grid:
    rows = [
        [
            Cell(one.run), Cell(one.kind), Cell(one.fingerprint[:12]), Cell(f"{one.num_tasks:,}", one.num_tasks),
            Cell(one.settings), Cell(one.versions), Cell(one.machine), Cell(one.dates),
            Cell(duration(one.seconds), one.seconds if math.isfinite(one.seconds) else None),
        ]
        for one in lines
    ]  # fmt: skip
    return Grid("How it was made", [Head(name) for name in _MADE], rows)


def _number(value: float, is_best: bool = False, baseline: float = math.nan) -> Cell:
    against = ratio_to(value, baseline)
    note = f"{ratio(against)}x" if math.isfinite(against) else ""
    return Cell(figure(value), value if math.isfinite(value) else None, is_best, note=note)
