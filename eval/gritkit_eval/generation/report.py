"""The tables of ``gritkit eval generation``: a row for each figure, a column for each model, an average of each kind.

This module knows nothing about how any of it was measured.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from gritkit_eval.bench.report import section, table
from gritkit_eval.generation.run import PERPLEXITY
from gritkit_eval.outcome import Outcome, plain
from gritkit_eval.report.gathered import rises

TITLE = "eval generation"
_ABOUT = ("chance", "shortest", "cut", "macro", "window", "stride", "num_tokens", "num_texts", "instructions")
"""Scores that are no result of their own."""
_FAR = 0.05
"""From chance, where what the shortest answer gives is worth a word."""


def tables(outcomes: Sequence[Outcome]) -> str:
    """A table for each kind of task, in the order in which they were measured; per subject only what JSON has."""
    kinds = list(dict.fromkeys(outcome.task_type for outcome in outcomes))
    return "\n\n".join(_table(kind, [one for one in outcomes if one.task_type == kind]) for kind in kinds)


def _table(kind: str, outcomes: Sequence[Outcome]) -> str:
    models = list(dict.fromkeys(outcome.model for outcome in outcomes))
    tasks = list(dict.fromkeys(outcome.task for outcome in outcomes))
    found = {(outcome.task, outcome.model): outcome for outcome in outcomes}
    lines = []
    for task in tasks:
        of_task = [one for model in models if (one := found.get((task, model))) is not None]
        first = of_task[0]
        for metric in _metrics(first):
            values = [_value(found.get((task, model)), metric, kind) for model in models]
            lines.append([task, metric, _count(first), _chance(first, metric), *values])
    if len(tasks) > 1 and all(rises(outcome.metric) for outcome in outcomes):
        means = [_mean([found.get((task, model)) for task in tasks]) for model in models]
        lines.append(["**average**", "main metric", "", "", *means])
    return f"**{kind}**\n\n" + table(["task", "metric", "examples", "chance", *models], lines)


def _metrics(outcome: Outcome) -> list[str]:
    """The main one first."""
    others = [name for name in outcome.scores if name not in (*_ABOUT, outcome.metric) and ":" not in name]
    return [outcome.metric, *(["macro"] if "macro" in outcome.scores else []), *others]


def _count(outcome: Outcome) -> str:
    if outcome.examples is not None:
        return str(len(outcome.examples))
    if "num_tokens" in outcome.scores:
        return f"{outcome.scores['num_tokens']:,.0f} tokens, window {outcome.scores['window']:,.0f}"
    return ""


def _chance(outcome: Outcome, metric: str) -> str:
    return f"{outcome.scores['chance']:.3f}" if "chance" in outcome.scores and metric == outcome.metric else ""


def _value(outcome: Outcome | None, metric: str, kind: str) -> str:
    value = math.nan if outcome is None else outcome.scores.get(metric, math.nan)
    if math.isnan(value):
        return ""
    return f"{value:,.4g}" if kind == PERPLEXITY else f"{value:.3f}"


def _mean(outcomes: Sequence[Outcome | None]) -> str:
    """Over tasks that all were measured on this model."""
    if any(one is None for one in outcomes):
        return ""
    return f"{sum(one.score for one in outcomes if one is not None) / len(outcomes):.3f}"


def report(outcomes: Sequence[Outcome], command: str) -> str:
    """The section of the results file; ``command`` makes the same."""
    versions = {name: version for outcome in outcomes for name, version in outcome.versions.items()}
    body = "\n\n".join([*notes(outcomes), tables(outcomes)])
    return section(TITLE, command, versions, body)


def notes(outcomes: Sequence[Outcome]) -> list[str]:
    """What a reader must know beside the figures."""
    made = []
    limits = sorted({one.settings["limit"] for one in outcomes if one.settings.get("limit") is not None})
    if limits:
        seeds = ", ".join(str(seed) for seed in sorted({one.settings.get("seed", 0) for one in outcomes}))
        made.append(f"At most {limits[0]} examples of each task (seed {seeds}).")
    for outcome in outcomes:
        left_out = outcome.settings.get("left_out")
        if left_out:
            counted = ", ".join(f"{name} ({count})" for name, count in left_out.items())
            made.append(f"{outcome.task} without the prompts that ask for what cannot be checked here: {counted}.")
        if outcome.scores.get("cut"):
            made.append(
                f"{outcome.model}, {outcome.task}: {outcome.scores['cut']:.0f} prompts were longer than the context "
                "and lost their beginning, solved examples first."
            )
        if "walls_missing" in outcome.settings:
            lacking = outcome.settings["walls_missing"]
            made.append(f"Programs ran without these walls, which the machine does not permit: {lacking}.")
    return list(dict.fromkeys(made)) + _short_answers(outcomes)


def _short_answers(outcomes: Sequence[Outcome]) -> list[str]:
    """Where a model that knows nothing is not at chance."""
    found = {}
    for one in outcomes:
        chance, shortest = (one.scores.get(name, math.nan) for name in ("chance", "shortest"))
        if abs(shortest - chance) > _FAR:
            found[one.task] = f"{one.task} ({shortest:.0%}, chance is {chance:.0%})"
    if not found:
        return []
    return [
        f"The shortest answer, whatever it says, is the right one of {', '.join(found.values())}: log-probabilities "
        "are sums, so the acc of a weak model is near that and not near chance; acc_norm is by character."
    ]


def as_json(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Outcomes as objects; what is not defined is null."""
    made: list[dict[str, Any]] = plain([dataclasses.asdict(outcome) for outcome in outcomes])
    return made
