"""The tables of ``gritkit eval mteb``: tasks by type, averages, the ratio to a baseline, and the plot.

This module knows nothing about how anything was measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gritkit.errors import InputError
from gritkit_eval.bench.report import section, table
from gritkit_eval.drawing import COLOURS, figure, save
from gritkit_eval.outcome import Outcome
from gritkit_eval.report.words import markdown

TITLE = "eval mteb"
PLOT = Path("plots/mteb.png")
"""Beside the results file."""


@dataclass(frozen=True)
class Board:
    """Scores of models on tasks, times 100 as MTEB's boards show them. NaN: not measured, or not defined."""

    models: Sequence[str]
    tasks: Mapping[str, Sequence[str]]
    """By type."""
    metrics: Mapping[str, str]
    """The main metric of each task."""
    scores: Mapping[tuple[str, str], float]
    """(model, task) -> score."""

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> Board:
        """Models and types in the order in which they come; of two outcomes of one model and task, the later one."""
        models: dict[str, None] = {}
        tasks: dict[str, dict[str, str]] = {}
        scores = {}
        for outcome in outcomes:
            models[outcome.model] = None
            tasks.setdefault(outcome.task_type, {})[outcome.task] = outcome.metric
            scores[outcome.model, outcome.task] = 100 * outcome.score
        if not scores:
            raise InputError("there are no results to show")
        metrics = {task: metric for of_type in tasks.values() for task, metric in of_type.items()}
        return cls(list(models), {kind: list(names) for kind, names in sorted(tasks.items())}, metrics, scores)

    def score(self, model: str, task: str) -> float:
        return self.scores.get((model, task), math.nan)

    def of_type(self, model: str, kind: str) -> float:
        """The mean over the tasks of a type; NaN unless all of them were measured."""
        return _mean(self.score(model, task) for task in self.tasks[kind])

    def over_types(self, model: str) -> float:
        """The mean of the types' means."""
        return _mean(self.of_type(model, kind) for kind in self.tasks)

    def over_tasks(self, model: str) -> float:
        """The mean over all tasks, MTEB's average."""
        return _mean(self.score(model, task) for names in self.tasks.values() for task in names)

    def summary(self, model: str) -> dict[str, float]:
        """Both averages, then each type's."""
        averages = {"tasks": self.over_tasks(model), "types": self.over_types(model)}
        return averages | {kind: self.of_type(model, kind) for kind in self.tasks}

    def ratios(self, model: str, baseline: str) -> dict[str, float]:
        """:meth:`summary` over that of the baseline (the survey's Table 4); NaN where the baseline is not above 0."""
        ours, theirs = self.summary(model), self.summary(baseline)
        return {name: ours[name] / theirs[name] if theirs[name] > 0 else math.nan for name in ours}


def tables(board: Board, baseline: str | None) -> str:
    """All of them in Markdown. Raises InputError for a baseline that was not measured."""
    if baseline is not None and baseline not in board.models:
        raise InputError(f"no results of the baseline {baseline!r}; there are those of {', '.join(board.models)}")
    num_tasks = sum(map(len, board.tasks.values()))
    header = ["model", f"tasks ({num_tasks})", f"types ({len(board.tasks)})"]
    header += [f"{kind} ({len(names)})" for kind, names in board.tasks.items()]
    parts = [table(header, [[model, *map(_shown, board.summary(model).values())] for model in board.models])]
    if baseline is not None and len(board.models) > 1:
        rows = [
            [model, *(_shown(ratio, ".3f") for ratio in board.ratios(model, baseline).values())]
            for model in board.models
            if model != baseline
        ]
        parts.append(f"Divided by what {markdown(baseline)} has:\n\n{table(header, rows)}")
    parts += [_of_type(board, kind) for kind in board.tasks]
    return "\n\n".join(parts)


def report(board: Board, baseline: str | None, *, command: str, about: str, versions: Mapping[str, str]) -> str:
    """The section of the results file."""
    body = (
        f"{about} Main metrics times 100, by mteb. tasks: mean over all tasks; types: mean of the types' means; "
        f"-: not measured, or not for this type.\n\n{tables(board, baseline)}\n\n![Scores]({PLOT.as_posix()})"
    )
    return section(TITLE, command, versions, body)


def plot(board: Board, results: Path) -> Path:
    """A row for each task, a point for each model, beside the results file.

    Raises MissingExtraError without matplotlib.
    """
    rows = [(kind, task) for kind, names in board.tasks.items() for task in names]
    drawn = figure(8.5, 1.4 + 0.24 * len(rows))
    axes = drawn.add_subplot()
    places = range(len(rows))
    for number, model in enumerate(board.models):
        scores = [board.score(model, task) for _, task in rows]
        colour = COLOURS[number % len(COLOURS)]
        axes.scatter(scores, places, s=26, color=colour, label=model, alpha=0.85, linewidths=0, zorder=3)
    first = [place for place in places if place == 0 or rows[place][0] != rows[place - 1][0]]
    for place in first[1:]:
        axes.axhline(place - 0.5, color="#94a3b8", linewidth=0.8)
    axes.set_yticks(list(places), [f"{task}  ({board.metrics[task]})" for _, task in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("main metric, times 100")
    axes.grid(axis="x", alpha=0.25)
    drawn.legend(loc="outside upper center", ncols=min(len(board.models), 6), frameon=False)
    save(drawn, results.parent / PLOT)
    return results.parent / PLOT


def _of_type(board: Board, kind: str) -> str:
    rows = [
        [task, board.metrics[task], *(_shown(board.score(model, task)) for model in board.models)]
        for task in board.tasks[kind]
    ]
    average = ["average", "", *(_shown(board.of_type(model, kind)) for model in board.models)]
    return f"**{kind}**\n\n{table(['task', 'metric', *board.models], [*rows, average])}"


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else math.nan


def _shown(value: float, form: str = ".2f") -> str:
    return "-" if math.isnan(value) else format(value, form)
