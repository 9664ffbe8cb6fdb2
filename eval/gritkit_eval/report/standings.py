"""Runs beside each other: averages over the tasks that all of them have, ratios to a baseline, who is best.

    average      over a group's common tasks: those of which every averaged run has a figure
    averaged     runs that have at least half of a group's tasks; one that has fewer would take them from all others
    ratio        a run's average over the baseline's; 1 is the same (survey, arXiv 2406.01607, Table 4)

Averages in one column are therefore always over one set of tasks. This module knows nothing about pages.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from gritkit_eval.report.gathered import Gathered, Measure, Run, rises

CONTESTS = ("mteb", "generation")
"""Kinds whose task types are averaged with each other too."""
NEUTRAL = ("similarity", "overlap")
"""Kinds of which more is neither better nor worse."""
_NAN = float("nan")


@dataclass(frozen=True, eq=False)
class Group:
    """Tasks that are averaged: of one kind and type, all better when higher or all when lower."""

    kind: str
    task_type: str
    rising: bool
    measures: tuple[Measure, ...]
    runs: tuple[Run, ...]
    """That have any of the tasks."""
    averaged: tuple[Run, ...]
    common: tuple[Measure, ...]
    """The tasks that averages are over."""
    name: str
    gathered: Gathered

    def average(self, run: Run) -> float:
        """NaN for a run with too few tasks, and where no task is common."""
        if run not in self.averaged or not self.common:
            return _NAN
        return statistics.fmean(self.gathered.score(measure, run) for measure in self.common)

    def missing(self, run: Run) -> list[Measure]:
        """Tasks of which the run has no figure."""
        return [one for one in self.measures if not math.isfinite(self.gathered.score(one, run))]

    @property
    def of_tasks(self) -> str:
        """What an average is over, in words."""
        if len(self.common) == len(self.measures):
            return f"{len(self.measures)} task{'s' * (len(self.measures) > 1)}"
        return f"{len(self.common)} of {len(self.measures)} tasks"


@dataclass(frozen=True)
class Overall:
    """What averages of several groups of one kind come to: rising ones that have common tasks."""

    groups: tuple[Group, ...]

    @property
    def num_tasks(self) -> int:
        return sum(len(group.common) for group in self.groups)

    def by_type(self, run: Run) -> float:
        """The mean of the groups' averages; NaN for a run that lacks one of them."""
        return _mean([group.average(run) for group in self.groups])

    def by_task(self, run: Run) -> float:
        """The mean over all common tasks; NaN for a run that lacks one of the groups."""
        if not math.isfinite(self.by_type(run)):
            return _NAN
        return _mean([group.gathered.score(one, run) for group in self.groups for one in group.common])


def groups_of(gathered: Gathered) -> list[Group]:
    """All groups, kinds and types in the order in which they were met."""
    sorted_: dict[tuple[str, str, bool], list[Measure]] = {}
    for measure in gathered.measures:
        sorted_.setdefault((measure.kind, measure.task_type, rises(measure.metric)), []).append(measure)
    kinds = dict.fromkeys(kind for kind, _, _ in sorted_)
    keys = [key for kind in kinds for key in sorted_ if key[0] == kind]
    return [_group(gathered, *key, sorted_[key]) for key in keys]


def _group(gathered: Gathered, kind: str, task_type: str, rising: bool, measures: Sequence[Measure]) -> Group:
    runs = [run for run in gathered.runs if any((one, run) in gathered.cells for one in measures)]
    has = {run: {one for one in measures if math.isfinite(gathered.score(one, run))} for run in runs}
    averaged = [run for run in runs if has[run] and 2 * len(has[run]) >= len(measures)]
    common = [one for one in measures if averaged and all(one in has[run] for run in averaged)]
    name = task_type if rising or kind in NEUTRAL else f"{task_type} (lower is better)"
    return Group(kind, task_type, rising, tuple(measures), tuple(runs), tuple(averaged), tuple(common), name, gathered)


def overall_of(groups: Sequence[Group], kind: str) -> Overall | None:
    """None where the kind's types are not averaged with each other, or there is one type alone."""
    several = tuple(group for group in groups if group.kind == kind and group.rising and group.common)
    return Overall(several) if kind in CONTESTS and len(several) > 1 else None


def best(values: Sequence[float], *, rising: bool, kind: str) -> set[int]:
    """The places of the best of at least two figures, all of them where several are equal; none of a neutral kind."""
    known = [value for value in values if math.isfinite(value)]
    if len(known) < 2 or kind in NEUTRAL or min(known) == max(known):
        return set()
    top = max(known) if rising else min(known)
    return {place for place, value in enumerate(values) if value == top}


def ratio_to(value: float, baseline: float) -> float:
    """NaN beside nothing, or beside 0."""
    return value / baseline if math.isfinite(value) and math.isfinite(baseline) and baseline else _NAN


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values and all(map(math.isfinite, values)) else _NAN
