"""``gritkit eval instructions``: how much it matters what a model is told a task is about.

Each task is measured with no instruction, with its own, with another task's, with one that says nothing, and, where
documents usually have none, with its own on the documents too. Differences are to no instruction, example by example
where the metric is a mean of examples.

This module knows nothing about tables.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from gritkit import GritModel
from gritkit.errors import InputError
from gritkit_eval.analysis.instructions_report import CONDITIONS, Report
from gritkit_eval.analysis.models import opened
from gritkit_eval.arguments import check_names
from gritkit_eval.mteb.encoder import GritEncoder
from gritkit_eval.mteb.instructions import BY_TYPE, TWO_SIDED, Instruction
from gritkit_eval.mteb.local import load_tasks
from gritkit_eval.mteb.running import KIND as TASKS
from gritkit_eval.mteb.running import evaluate, version_of
from gritkit_eval.outcome import PART, Outcome, OutcomeFolder, versions_of
from gritkit_eval.report.chance import paired

KIND = "instructions"
VAGUE = "Represent this text."
METRIC = "right - none"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One measurement."""

    models: tuple[str, ...]
    data: Path
    tasks: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    limit: int | None = None
    seed: int = 0


def run(settings: Settings, outcomes: OutcomeFolder) -> Report:
    """Every task on every model.

    Raises:
        RecordError: naming file and line of every bad record, before any model is loaded.
        InputError: for an unknown task or type, and a model whose prompt format has no place for an instruction.
    """
    check_names(settings.models)
    tasks = load_tasks(settings.data, settings.tasks, settings.types, settings.limit, settings.seed)
    found = []
    for given in settings.models:
        name, model = opened(given)
        if model.tokens.format.query_instructed is None:
            raise InputError(f"{name}: its prompt format {model.tokens.format.name!r} has no place for an instruction")
        asked = {task.metadata.name: GritEncoder(model, name=name).instruction(task.metadata) for task in tasks}
        for task in tqdm(tasks, name, disable=None, unit=" tasks"):
            found.append(_outcome(name, model, task, _told(task.metadata, asked, tasks, model), settings, outcomes))
    return Report(settings.limit, found)


def wrong_for(name: str, own: str | None, others: Sequence[tuple[str, str, str | None]]) -> str:
    """Another task's instruction: of ``others`` (name, type, query's instruction), which start after this task, the
    first of another type, else the first that differs, else that of a type which has another one."""
    type_of = {one: kind for one, kind, _ in others}
    different = [(kind, told) for one, kind, told in others if told is not None and told != own and one != name]
    for kind, told in different:
        if kind != type_of.get(name):
            return told
    if different:
        return different[0][1]
    return next(told for kind, told in BY_TYPE.items() if told != own and kind != type_of.get(name))


def _told(
    task: Any, asked: Mapping[str, Instruction], tasks: Sequence[Any], model: GritModel
) -> dict[str, str | Instruction]:
    """What the model is told in each condition."""
    at = [one.metadata.name for one in tasks].index(task.name)
    around = [one.metadata for one in [*tasks[at:], *tasks[:at]]]
    others = [(one.name, one.type, asked[one.name].query) for one in around]
    own = asked[task.name]
    told: dict[str, str | Instruction] = {
        "none": "", "right": own, "wrong": wrong_for(task.name, own.query, others), "vague": VAGUE,
    }  # fmt: skip
    if task.type in TWO_SIDED and own.passage is None and model.tokens.format.passage_instructed is not None:
        told["documents too"] = Instruction(own.query, own.query)
    return told


def _outcome(
    name: str, model: GritModel, task: Any, told: Mapping[str, str | Instruction], settings: Settings,
    outcomes: OutcomeFolder,
) -> Outcome:  # fmt: skip
    started = time.perf_counter()
    encoders = {
        condition: GritEncoder(model, name=name, instructions={task.metadata.name: one})
        for condition, one in told.items()
    }
    measured = {
        condition: evaluate(
            encoder, task, name=name if condition == "right" else f"{name}, instruction {condition}",
            fingerprint=model.fingerprint, settings=encoder.settings(task.metadata), outcomes=outcomes, results=None,
            kind=TASKS if condition == "right" else PART,
        )
        for condition, encoder in encoders.items()
    }  # fmt: skip
    given = {
        "told": {condition: encoder.settings(task.metadata) for condition, encoder in encoders.items()},
        "limit": settings.limit, "seed": settings.seed,
    }  # fmt: skip
    scores, examples = differences(measured)
    outcome = Outcome(
        kind=KIND, task=task.metadata.name, task_type=task.metadata.type, version=version_of(task), model=name,
        fingerprint=model.fingerprint, metric=METRIC, scores=scores, examples=examples, settings=given,
        seconds=time.perf_counter() - started, versions=versions_of("gritkit", "mteb", "torch", "transformers"),
    )  # fmt: skip
    outcomes.save(outcome)
    return outcome


def differences(measured: Mapping[str, Outcome]) -> tuple[dict[str, float], list[float] | None]:
    """Scores by condition, their differences to "none" with 95 % intervals of a paired bootstrap (NaN where the metric
    is no mean of examples), and the differences of "right" by example, where there are some."""
    none = measured["none"]
    scores = {condition: one.score for condition, one in measured.items()}
    examples = None
    for condition in CONDITIONS:
        if condition not in measured:
            continue
        one, name = measured[condition], f"{condition} - none"
        low = high = math.nan
        scores[name] = one.score - none.score
        if one.examples is not None and none.examples is not None and len(one.examples) > 1:
            chance = paired(none.examples, one.examples)
            scores[name], low, high = chance.mean, chance.low, chance.high
            if condition == "right":
                examples = [second - first for first, second in zip(none.examples, one.examples, strict=True)]
        scores |= {f"{name} low": low, f"{name} high": high}
    return scores, examples
