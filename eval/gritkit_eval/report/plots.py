"""The plots of a report, each an SVG with its legend: averages by type, tasks by run, quality against cost.

This module knows nothing about tables or pages.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Sequence

from gritkit_eval.report.gathered import Gathered, Run
from gritkit_eval.report.marks import COLOURS, WIDTH, Drawing, dot, grid, line, mark, scale, tick, valued, words
from gritkit_eval.report.standings import Group
from gritkit_eval.report.words import count, figure, text_html

MOST_RUNS = 40
"""Rows of a plot of runs; more would be a page of their own."""
_MOST_IN_LEGEND = 12
_MOST_DOTS = 80
_COST = {
    "bytes", "byte", "second", "seconds", "parameters", "params", "dim", "dims", "dimension", "dimensions", "layers",
    "tokens", "length", "ms", "latency", "mb", "throughput",
}  # fmt: skip
_NAME = 23
"""Characters of a name beside a plot."""
_LEFT = 178.0
"""Where plots begin, right of the names."""


def numbered(gathered: Gathered) -> dict[Run, int]:
    """The sign of every run, that of its model, the same in all plots."""
    models = list(dict.fromkeys(run.model for run in gathered.runs))
    return {run: models.index(run.model) for run in gathered.runs}


def by_type(groups: Sequence[Group], numbers: dict[Run, int]) -> Drawing | None:
    """A row for each type, in it the average of every run; None with fewer than two types or runs to show."""
    shown = [group for group in groups if group.common and group.rising]
    runs = [run for run in numbers if any(run in group.averaged for group in shown)]
    if len(shown) < 2 or len(runs) < 2:
        return None
    every = len(runs)
    top = sorted(runs, key=lambda run: -_strength(shown, run))[:_MOST_IN_LEGEND]
    runs = [run for run in runs if run in top]
    if len({numbers[run] for run in runs}) < len(runs):  # several runs of a model
        numbers = {run: number for number, run in enumerate(runs)}
    left, step = _LEFT, 30.0
    bottom = 12 + step * len(shown)
    averages = {(group, run): group.average(run) for group in shown for run in runs}
    across = scale([value for value in averages.values() if math.isfinite(value)], left, WIDTH - 14)
    parts = [grid(across, 6, bottom)]
    for place, group in enumerate(shown):
        y = 12 + step * (place + 0.5)
        values = {run: averages[group, run] for run in runs if math.isfinite(averages[group, run])}
        parts.append(words(left - 12, y + 4.5, group.name, "name", anchor="end", most=_NAME))
        if values:
            parts.append(line(across.at(min(values.values())), y, across.at(max(values.values())), y, "span"))
        for run, value in values.items():
            parts.append(mark(numbers[run], across.at(value), y, valued(f"{run.name}, {group.name}", value)))
    about = f"Average of each task type, {count(len(runs), 'run')}"
    more = f"The {len(runs)} best of {count(every, 'run')}. " if len(runs) < every else ""
    entries = [(numbers[run], run.name) for run in runs]
    return Drawing(bottom + 24, about, parts, f"{more}Averages over common tasks, by type.", entries)


def by_run(group: Group, numbers: dict[Run, int]) -> Drawing | None:
    """A row for each run: its tasks as dots (their spread, of very many), its average as its sign."""
    runs = sorted(group.runs, key=lambda run: _order(group, run))[:MOST_RUNS]
    scores = {run: _scores(group, run) for run in runs}
    every = [value for of_run in scores.values() for _, value in of_run]
    if len(every) < 2:
        return None
    names = _Names(runs)
    left, right, step = names.left, 52.0, names.step
    bottom = 12 + step * len(runs)
    across = scale(every, left, WIDTH - right)
    parts = [grid(across, 6, bottom)]
    for place, run in enumerate(runs):
        y, number = 12 + step * (place + 0.5), numbers[run]
        parts.append(names.drawn(run, y))
        values = [value for _, value in scores[run]]
        if len(values) > _MOST_DOTS:
            parts.append(_spread(values, across.at, y, number))
        elif len(values) > 1:
            parts += [
                dot(number, across.at(value), y + (-4, 4, 0)[index % 3], valued(f"{run.name}, {label}", value))
                for index, (label, value) in enumerate(scores[run])
            ]
        average = group.average(run)
        if math.isfinite(average):
            parts.append(mark(number, across.at(average), y, valued(f"{run.name}, average", average)))
        parts.append(words(WIDTH - right + 12, y + 4.5, figure(average), "value"))
    small = f"spread of {count(len(group.measures), 'task')}" if len(group.measures) > _MOST_DOTS else "one task"
    note = f"Large: average over {group.of_tasks}. Small: {small}." if len(group.measures) > 1 else ""
    more = f" The {MOST_RUNS} best of {len(group.runs)} runs." if len(group.runs) > MOST_RUNS else ""
    return Drawing(bottom + 24, f"{group.name} by run", parts, note + more)


class _Names:
    """What stands left of the rows: models; settings where one model has all rows; both below each other otherwise."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._models = len({run.model for run in runs}) > 1 or not any(run.variant for run in runs)
        self._variants = any(run.variant for run in runs)
        longest = max(len(line) for run in runs for line in self._lines(run))
        self._most = min(max(longest, _NAME), 34)
        self.left = 16 + 7.1 * self._most
        self.step = 38.0 if self._models and self._variants else 26.0

    def _lines(self, run: Run) -> list[str]:
        return [part for part, shown in ((run.variant, self._variants), (run.model, self._models)) if shown and part]

    def drawn(self, run: Run, y: float) -> str:
        lines = self._lines(run) or [run.model]
        top = y + 4.5 - 7.5 * (len(lines) - 1)
        return "".join(
            words(self.left - 12, top + 15 * place, one, "tick" if place else "", anchor="end", most=self._most)
            for place, one in enumerate(lines)
        )


def _spread(values: Sequence[float], at: Callable[[float], float], y: float, number: int) -> str:
    """Least to greatest as a line, the middle half as a bar."""
    low, middle, high = statistics.quantiles(values, n=4)
    title = f"least {min(values):.4g}, quartiles {low:.4g}, {middle:.4g}, {high:.4g}, greatest {max(values):.4g}"
    return (
        line(at(min(values)), y, at(max(values)), y, "span")
        + f'<rect class="box c{number % COLOURS}" x="{at(low):.1f}" y="{y - 5:.1f}" '
        f'width="{max(at(high) - at(low), 1):.1f}" height="10"><title>{text_html(title)}</title></rect>'
    )


def costs(group: Group) -> list[str]:
    """What the quality of a group's runs can be drawn against: figures and settings that are costs and differ."""
    found: dict[str, set[float]] = {}
    for run in group.runs:
        for name, value in _costs(group, run).items():
            found.setdefault(name, set()).add(value)
    return [name for name, values in found.items() if len(values) > 1]


def against(group: Group, cost: str, numbers: dict[Run, int]) -> Drawing | None:
    """Quality upwards, one cost to the right; a line through those runs of a model that no other beats in both."""
    points: dict[str, list[tuple[float, float, Run]]] = {}
    for run in group.averaged:
        x = _costs(group, run).get(cost)
        if x is not None and group.common:
            points.setdefault(run.model, []).append((x, group.average(run), run))
    every = [point for several in points.values() for point in several]
    if len(every) < 2:
        return None
    xs, ys = [x for x, _, _ in every], [y for _, y, _ in every]
    log = min(xs) > 0 and max(xs) / min(xs) > 8
    across = scale(xs, 62, WIDTH - 20, log=log)
    up = scale(ys, 218, 16)
    parts = [grid(across, 10, 224)]
    for value in up.ticks:
        parts += [
            line(56, up.at(value), WIDTH - 14, up.at(value), "grid"),
            words(48, up.at(value) + 4.5, tick(value), "tick", anchor="end"),
        ]
    parts.append(words((56 + WIDTH) / 2, 262, cost.replace("_", " "), "axis", anchor="middle"))
    signs = {model: numbers[several[0][2]] for model, several in points.items()}
    lines = ""
    for model, several in points.items():
        frontier = unbeaten([(x, y) for x, y, _ in several], cheap=not _is_rate(cost), rising=group.rising)
        path = " ".join(f"{across.at(x):.1f},{up.at(y):.1f}" for x, y in frontier)
        if len(frontier) > 1:
            lines = "Lines: runs that no other of their model beats in both."
        parts.append(f'<polyline class="path s{signs[model] % COLOURS}" points="{path}"/>')
        for x, y, run in several:
            parts.append(mark(signs[model], across.at(x), up.at(y), f"{valued(run.name, y)} at {cost} {tick(x)}"))
    caption = f"Up: average over {group.of_tasks}. Right: {cost.replace('_', ' ')}{', logarithmic' if log else ''}. "
    caption += lines
    entries = [(number, model) for model, number in signs.items()]
    return Drawing(270, f"{group.name} against {cost}", parts, caption, entries)


def unbeaten(points: Sequence[tuple[float, float]], *, cheap: bool, rising: bool) -> list[tuple[float, float]]:
    """From the best cost on, every point that is better than all before it."""
    found: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda at: (at[0] if cheap else -at[0], -at[1] if rising else at[1])):
        if not found or (y > found[-1][1] if rising else y < found[-1][1]):
            found.append((x, y))
    return found


def _is_rate(cost: str) -> bool:
    """Whether more of it is better."""
    return cost.endswith(("/s", "per_second")) or "throughput" in cost


def _costs(group: Group, run: Run) -> dict[str, float]:
    """Numbers among a run's scores and settings whose names say that they are costs; means over the common tasks."""
    found: dict[str, list[float]] = {}
    cells = [group.gathered.cells[one, run] for one in group.common if (one, run) in group.gathered.cells]
    for one in cells:
        for name, value in [*one.scores.items(), *one.settings.items()]:
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if number and name != one.metric and _is_cost(name):
                found.setdefault(name, []).append(float(value))
    return {name: statistics.fmean(values) for name, values in found.items() if len(values) == len(cells)}


def _is_cost(name: str) -> bool:
    return _is_rate(name) or not _COST.isdisjoint(re.split(r"[^a-z]+", name.lower()))


def _scores(group: Group, run: Run) -> list[tuple[str, float]]:
    found = [(group.gathered.label(one), group.gathered.score(one, run)) for one in group.measures]
    return [(label, value) for label, value in found if math.isfinite(value)]


def _strength(groups: Sequence[Group], run: Run) -> float:
    known = [value for value in (group.average(run) for group in groups) if math.isfinite(value)]
    return statistics.fmean(known) if known else -math.inf


def _order(group: Group, run: Run) -> float:
    """Best first, those without an average last."""
    average = group.average(run)
    return math.inf if not math.isfinite(average) else -average if group.rising else average
