"""Two runs, task by task: what differs, and whether by more than chance.

Tasks are compared where both runs were asked the same: same version, same main metric, same limit, seed and split. The
rest is named with the reason. Where both kept the figures of their examples, the difference has a confidence interval
and a p value, corrected over all tasks by Holm's method; without them it has neither. Averages over tasks are resampled
over tasks: how much they would move with other tasks of the kind.

This module knows nothing about pages.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gritkit.errors import InputError
from gritkit_eval.outcome import Outcome
from gritkit_eval.report.chance import LEAST_TASKS, LEVEL, Difference, holm, paired
from gritkit_eval.report.gathered import DATA_SETTINGS, Gathered, Run, rises
from gritkit_eval.report.words import count, setting

_ROUNDING = 1e-4
"""Some harnesses round their scores."""


@dataclass(frozen=True)
class Pair:
    """One task of both runs."""

    first: Outcome
    second: Outcome
    label: str
    chance: Difference | None
    """None where the examples' figures are not there."""
    why_not: str = ""
    corrected: float = math.nan
    """The p value after Holm's correction over all tasks."""

    @property
    def difference(self) -> float:
        """Second minus first."""
        return self.second.score - self.first.score

    @property
    def rising(self) -> bool:
        return rises(self.first.metric)

    @property
    def verdict(self) -> str:
        """better, worse: the second run, beyond chance. Empty within chance, or where that is not known."""
        if not self.corrected < 1 - LEVEL:
            return ""
        return "better" if (self.difference > 0) == self.rising else "worse"


@dataclass(frozen=True)
class Average:
    """Over the tasks of a kind, or of one type of it."""

    name: str
    num_tasks: int
    first: float
    second: float
    chance: Difference | None
    """Over tasks; None with too few of them."""


@dataclass(frozen=True)
class Comparison:
    """``second`` against ``first``."""

    first: str
    second: str
    pairs: Sequence[Pair]
    averages: Sequence[Average]
    refused: Sequence[tuple[str, str]]
    """Task and why it is not compared."""
    resamples: int


def compare(
    first: tuple[Gathered, Run], second: tuple[Gathered, Run], *, resamples: int = 10_000, seed: int = 0
) -> Comparison:
    """All tasks that both runs have.

    Raises:
        InputError: where no task can be compared, with the reason of the first.
    """
    names = first[1].name, second[1].name
    matched, refused = _matched(_outcomes(*first), _outcomes(*second), names)
    if not matched:
        reason = f"{refused[0][0]}: {refused[0][1]}" if refused else "they have no results"
        raise InputError(f"nothing of {names[0]!r} and {names[1]!r} can be compared: {reason}")
    pairs = [_pair(one, other, label, resamples, seed) for one, other, label in matched]
    known = [place for place, pair in enumerate(pairs) if pair.chance is not None]
    ps = [pair.chance.p for pair in pairs if pair.chance is not None]
    for place, corrected in zip(known, holm(ps), strict=True):
        pairs[place] = replace(pairs[place], corrected=corrected)
    return Comparison(*names, pairs, _averages(pairs, resamples, seed), refused, resamples)


def _outcomes(gathered: Gathered, run: Run) -> dict[tuple[str, str], list[Outcome]]:
    """(kind, task) -> the run's outcomes of it."""
    found: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for (measure, of), one in gathered.cells.items():
        if of == run:
            found[measure.kind, measure.task].append(one)
    return found


def _matched(
    first: dict[tuple[str, str], list[Outcome]], second: dict[tuple[str, str], list[Outcome]], names: tuple[str, str]
) -> tuple[list[tuple[Outcome, Outcome, str]], list[tuple[str, str]]]:
    """Outcomes of the same thing, and the tasks that are none, with the reason."""
    matched, refused = [], []
    for key in dict.fromkeys([*first, *second]):
        _, task = key
        if key not in first or key not in second:
            refused.append((task, f"{names[0 if key in second else 1]} has no result of it"))
            continue
        ones, others = first[key], second[key]
        same = [(one, other) for one in ones for other in others if not _unlike(one, other)]
        several = len(same) > 1
        matched += [(one, other, _label(task, one, several)) for one, other in same]
        if not same:
            refused.append((task, _unlike(ones[0], others[0])))
    return matched, refused


def _unlike(one: Outcome, other: Outcome) -> str:
    """Why two outcomes of a task are of different things; empty where they are not."""
    for what, mine, theirs in (
        *((name, one.settings.get(name), other.settings.get(name)) for name in DATA_SETTINGS),
        ("version", one.version, other.version),
        ("metric", one.metric, other.metric),
    ):
        if mine != theirs:
            return f"{setting(what, mine)} against {setting(what, theirs)}: measure both alike"
    return ""


def _label(task: str, one: Outcome, several: bool) -> str:
    data = [setting(name, one.settings[name]) for name in DATA_SETTINGS if one.settings.get(name) is not None]
    parts = [f"version {one.version}", *data]
    return f"{task} ({', '.join(parts)})" if several else task


def _pair(one: Outcome, other: Outcome, label: str, resamples: int, seed: int) -> Pair:
    why_not = _unpaired(one, other)
    if why_not:
        return Pair(one, other, label, None, why_not)
    assert one.examples is not None
    assert other.examples is not None
    return Pair(one, other, label, paired(one.examples, other.examples, resamples=resamples, seed=seed))


def _unpaired(one: Outcome, other: Outcome) -> str:
    """Why there is no bootstrap over examples; empty where there can be one."""
    if one.examples is None or other.examples is None:
        return "no scored examples"
    if len(one.examples) != len(other.examples):
        return f"{len(one.examples):,} examples against {len(other.examples):,}"
    if len(one.examples) < 2:
        return count(len(one.examples), "example")
    if not all(map(math.isfinite, [*one.examples, *other.examples])):
        return "examples without a figure"
    for each in (one, other):
        if abs(math.fsum(each.examples or ()) / len(each.examples or ()) - each.score) > _ROUNDING:
            return "its examples' mean is not its score"
    return ""


def _averages(pairs: Sequence[Pair], resamples: int, seed: int) -> list[Average]:
    """Of each kind and of each of its types, of rising metrics and falling ones apart."""
    sorted_: dict[tuple[str, bool], dict[str, list[Pair]]] = {}
    for pair in pairs:
        if math.isfinite(pair.difference):
            types = sorted_.setdefault((pair.first.kind, pair.rising), {})
            types.setdefault(pair.first.task_type, []).append(pair)
    found = []
    for (kind, rising), types in sorted_.items():
        lower = "" if rising else " (lower is better)"
        if len(types) > 1:
            every = [pair for several in types.values() for pair in several]
            found.append(_average(f"{kind}{lower}", every, resamples, seed))
        found += [_average(f"{kind}, {name}{lower}", several, resamples, seed) for name, several in types.items()]
    return found


def _average(name: str, pairs: Sequence[Pair], resamples: int, seed: int) -> Average:
    ones, others = [pair.first.score for pair in pairs], [pair.second.score for pair in pairs]
    chance = paired(ones, others, resamples=resamples, seed=seed) if len(pairs) >= LEAST_TASKS else None
    return Average(name, len(pairs), math.fsum(ones) / len(pairs), math.fsum(others) / len(pairs), chance)


def as_json(made: Comparison) -> dict[str, Any]:
    """Everything as plain values; what is not known is null."""

    def chance(given: Difference | None) -> dict[str, Any]:
        fields = ("low", "high", "p")
        return {name: None if given is None else getattr(given, name) for name in fields}

    tasks = [
        {
            "kind": pair.first.kind, "type": pair.first.task_type, "task": pair.label, "metric": pair.first.metric,
            "first": pair.first.score, "second": pair.second.score, "difference": pair.difference,
            **chance(pair.chance), "p_holm": pair.corrected, "verdict": pair.verdict, "not_paired": pair.why_not,
        }
        for pair in made.pairs
    ]  # fmt: skip
    averages = [
        {"name": one.name, "num_tasks": one.num_tasks, "first": one.first, "second": one.second, **chance(one.chance)}
        for one in made.averages
    ]
    found = {
        "first": made.first, "second": made.second, "resamples": made.resamples, "level": LEVEL, "tasks": tasks,
        "averages": averages, "not_compared": [{"task": task, "reason": why} for task, why in made.refused],
    }  # fmt: skip
    whole: dict[str, Any] = json.loads(json.dumps(found), parse_constant=lambda _: None)
    return whole
