"""What a comparison of two runs says, as chapters of a page or of Markdown.

This module knows nothing about how chance is told from difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from gritkit_eval.report.chance import LEVEL, Difference
from gritkit_eval.report.compare import Average, Comparison, Pair
from gritkit_eval.report.composition import Block, Chapter
from gritkit_eval.report.grids import Cell, Grid, Head
from gritkit_eval.report.marks import WIDTH, Drawing, grid, line, mark, scale, valued, words
from gritkit_eval.report.standings import NEUTRAL
from gritkit_eval.report.words import count, figure, plain

_MOST = 60
"""Rows of the plot; of more tasks those that differ most are drawn."""


def title(made: Comparison) -> str:
    return f"{plain(made.second)} against {plain(made.first)}"


def lead(made: Comparison) -> str:
    """The verdicts counted."""
    better = sum(pair.verdict == "better" for pair in made.pairs)
    worse = sum(pair.verdict == "worse" for pair in made.pairs)
    known = sum(pair.chance is not None for pair in made.pairs)
    return (
        f"{count(len(made.pairs), 'task')} compared. Of the {known:,} with scored examples, "
        f"{plain(made.second)} is better beyond chance in {better:,} and worse in {worse:,}."
    )


def chapters(made: Comparison) -> list[Chapter]:
    """Averages, tasks, and what is not compared."""
    drawn = _forest(made)
    parts = []
    if made.averages:
        parts.append(Chapter("Averages", [Block(tables=[_averages(made)], sentences=[_about_averages()])]))
    tasks = Block(sentences=_about(made), drawings=[drawn] if drawn else [], tables=[_tasks(made)])
    parts.append(Chapter("Tasks", [tasks]))
    if made.refused:
        parts.append(Chapter("Not compared", [Block(bullets=lambda shown: _refused(made, shown))]))
    return parts


def _refused(made: Comparison, shown: Callable[[str], str]) -> list[str]:
    return [f"{shown(task)}: {shown(why)}" for task, why in made.refused]


def _about_averages() -> str:
    return "Interval and p resample tasks: how far the average would move with other tasks like these."


def _about(made: Comparison) -> list[str]:
    said = [
        f"Differences are {plain(made.second)} minus {plain(made.first)}. Intervals hold {LEVEL:.0%} of "
        f"{made.resamples:,} paired bootstrap samples of the examples; p is of a sign-flip test, corrected over all "
        f"tasks by Holm's method. What stays below {1 - LEVEL:.2f} is beyond chance: the odds that any of these "
        "verdicts is wrong are no higher than that."
    ]
    tested = sum(pair.chance is not None for pair in made.pairs)
    if tested / (made.resamples + 1) >= 1 - LEVEL:
        said.append(
            f"With {tested:,} tasks, {made.resamples:,} resamples are too few for any p to pass: "
            f"give at least {tested * 20:,}."
        )
    return said


def _averages(made: Comparison) -> Grid:
    return Grid("Averages over tasks", _heads(made, "Average", ""), [_average(one) for one in made.averages])


def _average(one: Average) -> list[Cell]:
    difference = one.second - one.first
    p = math.nan if one.chance is None else one.chance.p
    return [
        Cell(one.name, note=count(one.num_tasks, "task")), _number(one.first), _number(one.second), _signed(difference),
        _interval(one.chance), _p(p),
    ]  # fmt: skip


def _tasks(made: Comparison) -> Grid:
    heads = [*_heads(made, "Task", " (Holm)"), Head("Beyond chance")]
    return Grid("Task by task", heads, [_task(pair) for pair in made.pairs])


def _task(pair: Pair) -> list[Cell]:
    verdict = pair.verdict
    if verdict and pair.first.kind in NEUTRAL:
        verdict = "differs"
    return [
        Cell(pair.label, note=pair.first.metric), _number(pair.first.score), _number(pair.second.score),
        _signed(pair.difference, verdict), _interval(pair.chance), _p(pair.corrected),
        Cell(verdict or (pair.why_not and f"unknown: {pair.why_not}") or "no"),
    ]  # fmt: skip


def _heads(made: Comparison, first: str, corrected: str) -> list[Head]:
    return [
        Head(first), Head(made.first), Head(made.second), Head("Difference"), Head(f"{LEVEL:.0%} interval"),
        Head(f"p{corrected}"),
    ]  # fmt: skip


def _number(value: float) -> Cell:
    return Cell(figure(value), value if math.isfinite(value) else None)


def _signed(value: float, verdict: str = "") -> Cell:
    if not math.isfinite(value):
        return Cell("n/a")
    shown = f"{'+' if value > 0 else ''}{figure(value)}"
    return Cell(shown, value, best=verdict in ("better", "differs"), worse=verdict == "worse")


def _interval(chance: Difference | None) -> Cell:
    if chance is None:
        return Cell("n/a")
    return Cell(f"{figure(chance.low)} to {figure(chance.high)}", chance.high - chance.low)


def _p(value: float) -> Cell:
    return Cell("n/a") if not math.isfinite(value) else Cell(f"{value:.4f}" if value >= 1e-4 else "< 0.0001", value)


def _forest(made: Comparison) -> Drawing | None:
    """A row for each task: the difference as a sign, its interval as a line; 0 is no difference."""
    every: Sequence[Pair] = [pair for pair in made.pairs if pair.chance is not None and pair.first.kind not in NEUTRAL]
    kept = sorted(every, key=lambda pair: -abs(pair.difference))[:_MOST]
    shown = sorted(kept, key=lambda pair: -pair.difference if pair.rising else pair.difference)
    if not shown:
        return None
    ends = [end for pair in shown if pair.chance for end in (pair.chance.low, pair.chance.high, pair.difference)]
    left, step = 160.0, 22.0
    bottom = 12 + step * len(shown)
    across = scale([*ends, 0.0], left, WIDTH - 14)
    parts = [grid(across, 6, bottom), line(across.at(0), 6, across.at(0), bottom, "zero")]
    for place, pair in enumerate(shown):
        assert pair.chance is not None
        y = 12 + step * (place + 0.5)
        sign = {"better": 2, "worse": 1}.get(pair.verdict, 7)
        told = f"{valued(pair.label, pair.difference)}, {_interval(pair.chance).text}"
        parts += [
            words(left - 12, y + 4.5, pair.label, "name", anchor="end", most=23),
            line(across.at(pair.chance.low), y, across.at(pair.chance.high), y, f"ci s{sign}"),
            mark(sign, across.at(pair.difference), y, told, size=4.5),
        ]
    more = f" The {len(shown)} tasks that differ most." if len(shown) < len(every) else ""
    caption = f"Difference of each task and its {LEVEL:.0%} interval; right of 0 the second run is higher.{more}"
    entries = [(2, "better beyond chance"), (1, "worse beyond chance"), (7, "within chance")]
    return Drawing(bottom + 24, title(made), parts, caption, entries)
