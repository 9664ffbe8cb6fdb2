"""The section of ``eval instructions``: differences by task and their mean, and a plot.

This module knows nothing about how any of it was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gritkit_eval.bench.report import Marked, section, table
from gritkit_eval.drawing import COLOURS, figure, save
from gritkit_eval.outcome import Outcome
from gritkit_eval.report.chance import LEAST_TASKS, paired
from gritkit_eval.report.words import markdown

TITLE = "eval instructions"
PLOT = Path("plots/eval-instructions.png")
"""Beside the results file."""
CONDITIONS = ("right", "wrong", "vague", "documents too")
"""What is compared with no instruction."""


@dataclass(frozen=True)
class Report:
    """Everything that one call measured."""

    limit: int | None
    outcomes: list[Outcome]
    title: str = TITLE

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(one.model for one in self.outcomes))

    def of(self, model: str) -> list[Outcome]:
        return [one for one in self.outcomes if one.model == model]

    def tables(self) -> str:
        """One for each model."""
        return "\n\n".join(part for model in self.models for part in (f"{markdown(model)}:", _table(self.of(model))))

    def section(self, command: str) -> str:
        kept = "" if self.limit is None else f" {self.limit:,} examples of each task."
        told = self.outcomes[0].settings["told"]["vague"]["instruction"]["query"]
        about = (
            f"Main scores without instruction, and the differences to it, in points.{kept} Right: the task's own; "
            f"wrong: another task's; vague: {told!r}; documents too: the right one on documents, where they usually "
            "have none. In brackets: 95 % intervals of a paired bootstrap over examples, where the score is a mean of "
            f"them; in the last row over tasks, where there are at least {LEAST_TASKS}."
        )
        picture = f"![Differences to no instruction, by task]({PLOT.as_posix()})"
        return section(TITLE, command, self.outcomes[0].versions, "\n\n".join([about, picture, self.tables()]))

    def plot(self, results: Path) -> Path:
        """Differences by task and condition with their intervals, a column for each model, beside the results file."""
        tasks = list(dict.fromkeys(one.task for one in self.outcomes))
        drawn = figure(3 + 4.2 * len(self.models), 1.4 + 0.42 * len(tasks))
        grid = drawn.subplots(1, len(self.models), sharey=True, squeeze=False)[0]
        for axes, model in zip(grid, self.models, strict=True):
            for number, condition in enumerate(CONDITIONS):
                shown = [(tasks.index(one.task), one) for one in self.of(model) if f"{condition} - none" in one.scores]
                if not shown:
                    continue
                rows = [row + 0.17 * (number - 1.5) for row, _ in shown]
                middle = [100 * one.scores[f"{condition} - none"] for _, one in shown]
                low, high = (
                    [100 * one.scores[f"{condition} - none {end}"] for _, one in shown] for end in ("low", "high")
                )
                spread = [
                    [m - a for m, a in zip(middle, low, strict=True)],
                    [b - m for m, b in zip(middle, high, strict=True)],
                ]
                spread = [[0.0 if math.isnan(value) else max(value, 0.0) for value in side] for side in spread]
                axes.errorbar(
                    middle, rows, xerr=spread, fmt="o", markersize=4, color=COLOURS[number], label=condition, capsize=2,
                    linewidth=1,
                )  # fmt: skip
            axes.axvline(0, color="#444444", linewidth=0.8)
            axes.set_title(model, fontsize=10)
            axes.set_xlabel("points more than without instruction")
            axes.grid(axis="x", alpha=0.25)
        grid[0].set_yticks(range(len(tasks)), tasks, fontsize=8)
        grid[0].invert_yaxis()
        grid[-1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        save(drawn, results.parent / PLOT)
        return results.parent / PLOT


def _table(outcomes: Sequence[Outcome]) -> str:
    rows = [[one.task, one.task_type, f"{100 * one.scores['none']:.2f}", *_cells(one)] for one in outcomes]
    means = [_mean(outcomes, condition) for condition in CONDITIONS]
    none = math.fsum(one.scores["none"] for one in outcomes) / len(outcomes)
    rows.append(["mean", "", f"{100 * none:.2f}", *means])
    return table(["task", "type", "none", *CONDITIONS], rows)


def _cells(outcome: Outcome) -> list[str]:
    names = [f"{condition} - none" for condition in CONDITIONS]
    return [
        _cell(outcome.scores[name], outcome.scores[f"{name} low"], outcome.scores[f"{name} high"])
        if name in outcome.scores
        else ""
        for name in names
    ]


def _mean(outcomes: Sequence[Outcome], condition: str) -> str:
    """Over the tasks that have the condition; of few an interval would say nothing."""
    values = [one.scores[f"{condition} - none"] for one in outcomes if f"{condition} - none" in one.scores]
    if not values:
        return ""
    if len(values) < LEAST_TASKS or any(map(math.isnan, values)):
        return _cell(math.fsum(values) / len(values), math.nan, math.nan)
    found = paired([0.0] * len(values), values)
    return _cell(found.mean, found.low, found.high)


def _cell(mean: float, low: float, high: float) -> str:
    spread = "" if math.isnan(low) else f" [{100 * low:+.2f}, {100 * high:+.2f}]"
    return Marked(f"{100 * mean:+.2f}{spread}")
