"""Runs beside each other: averages over the tasks that all of them have, ratios to a baseline, who is best.

    group        tasks of one kind and type that were asked alike: on the same limit and seed, each in its latest
                 version, or each in the one before
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
from gritkit_eval.report.words import count

CONTESTS = ("mteb", "generation")
"""Kinds whose task types are averaged with each other too."""
NEUTRAL = ("similarity", "overlap")
"""Kinds of which more is neither better nor worse."""
_NAN = float("nan")


@dataclass(frozen=True, eq=False)
class Group:
    """Tasks that are averaged: of one kind and type, all better when higher or all when lower."""

    kind: str
    asked: str
    """How its tasks were, in words: limit, seed, version."""
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
    """All groups; kinds, ways of asking and types in the order in which they were met."""
    ages = _ages(gathered)
    sorted_: dict[tuple[str, str, str, bool], list[Measure]] = {}
    for one in gathered.measures:
        asked = f"{one.asked}, {count(ages[one], 'version')} ago" if ages[one] else one.asked
        sorted_.setdefault((one.kind, asked, one.task_type, rises(one.metric)), []).append(one)
    ways = dict.fromkeys((kind, asked) for kind, asked, _, _ in sorted_)
    kinds = dict.fromkeys(kind for kind, _ in ways)
    keys = [key for kind in kinds for way in ways if way[0] == kind for key in sorted_ if key[:2] == way]
    several = {kind for kind in kinds if sum(way[0] == kind for way in ways) > 1}
    return [_group(gathered, *key, sorted_[key], named=key[0] in several) for key in keys]


def alike(groups: Sequence[Group], kind: str) -> list[list[Group]]:
    """The groups of a kind, those that were asked alike together: what one table may hold."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        if group.kind == kind:
            found.setdefault(group.asked, []).append(group)
    return list(found.values())


def _ages(gathered: Gathered) -> dict[Measure, int]:
    """How many later versions of its task were measured on the same limit and seed."""
    made: dict[tuple[str, str, str, str], dict[str, str]] = {}
    for (measure, _), one in gathered.cells.items():
        versions = made.setdefault((measure.kind, measure.task_type, measure.task, measure.asked), {})
        versions[measure.version] = max(one.made, versions.get(measure.version, ""))
    return {
        one: sum(made_on > versions[one.version] for made_on in versions.values())
        for one in gathered.measures
        for versions in [made[one.kind, one.task_type, one.task, one.asked]]
    }


def _group(
    gathered: Gathered, kind: str, asked: str, task_type: str, rising: bool, measures: Sequence[Measure], *, named: bool
) -> Group:
    """``named``: with how it was asked, for there are others."""
    runs = [run for run in gathered.runs if any((one, run) in gathered.cells for one in measures)]
    has = {run: {one for one in measures if math.isfinite(gathered.score(one, run))} for run in runs}
    averaged = [run for run in runs if has[run] and 2 * len(has[run]) >= len(measures)]
    common = [one for one in measures if averaged and all(one in has[run] for run in averaged)]
    about = [asked] * named + ["lower is better"] * (not rising and kind not in NEUTRAL)
    name = f"{task_type} ({', '.join(about)})" if about else task_type
    return Group(
        kind, asked, task_type, rising, tuple(measures), tuple(runs), tuple(averaged), tuple(common), name, gathered
    )


def overall_of(groups: Sequence[Group], kind: str) -> Overall | None:
    """Of groups that were asked alike. None where the kind's types are not averaged with each other, or there is one
    type alone."""
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
