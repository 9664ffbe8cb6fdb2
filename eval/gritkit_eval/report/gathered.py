"""Outcomes of any folders, told apart: which run measured what, and which figures are of the same thing.

    measure    a task as it was asked: kind, type, version, main metric, and which of its data (limit, seed, split)
    run        a model under one set of the other settings. Where a model has several outcomes of one measure, the
               settings that differ among them name its runs; else its name alone does

Of kind efficiency the tasks are forms of a model (256 dimensions, int8 vectors) over one set of tasks: each is a run.

A model is its fingerprint, and is called what its latest outcome calls it: one that was renamed between two evaluations
is one model. Two models of one name (other weights, other fingerprint) are two. Of two outcomes of one run and measure
the later one stands, and the earlier one is kept on a list.

This module knows nothing about averages or pages.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gritkit.errors import InputError
from gritkit.files import resolve
from gritkit_eval.outcome import PART, Outcome, OutcomeFolder
from gritkit_eval.report.words import listed, setting

DATA_SETTINGS = ("limit", "seed", "split")
"""Settings that choose among a task's examples: figures that differ in one are of different things."""
FORMS = ("efficiency",)
"""Kinds whose outcomes of the type of that name have a form of the model as their task."""
_FALLING = {
    "perplexity", "ppl", "loss", "nll", "brier", "bits", "kl", "error", "errors", "wer", "cer", "latency", "seconds",
    "ttft", "ms", "bytes", "time",
}  # fmt: skip


def rises(metric: str) -> bool:
    """Whether more of it is better, by the words of its name."""
    return _FALLING.isdisjoint(re.split(r"[^a-z]+", metric.lower()))


@dataclass(frozen=True)
class Measure:
    """A task as it was asked."""

    kind: str
    task_type: str
    task: str
    version: str
    metric: str
    data: tuple[tuple[str, str], ...]
    """Settings that choose examples, values as JSON."""

    @property
    def asked(self) -> str:
        """Which of its examples, in words."""
        return ", ".join(f"{name}={value}" for name, value in self.data) or "all data"


@dataclass(frozen=True)
class Run:
    """A model under one set of settings."""

    model: str
    variant: str = ""
    """The settings that tell this run from the model's others; empty where there is one."""

    @property
    def name(self) -> str:
        return f"{self.model} · {self.variant}" if self.variant else self.model


class Gathered:
    """``cells[measure, run]`` is the outcome; measures and runs in the order in which they were met."""

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        kept, self.older = _latest(outcomes)
        """``older``: outcomes that a later one of the same thing replaces."""
        self.cells: dict[tuple[Measure, Run], Outcome] = {}
        models = _model_names(kept)
        varying = _varying(kept)
        for one in kept:
            keys = varying.get((one.fingerprint, one.kind), [])
            named = [setting(key, one.settings[key]) for key in keys if one.settings.get(key) is not None]
            variant = ", ".join([one.task, *named] if _is_form(one) else named)
            run = Run(models[one.fingerprint], variant)
            self.cells[measure_of(one), run] = one
        self.measures = list(dict.fromkeys(measure for measure, _ in self.cells))
        self.runs = _ordered(run for _, run in self.cells)
        self._labels = _labels(self.measures)

    @property
    def outcomes(self) -> list[Outcome]:
        return list(self.cells.values())

    def label(self, measure: Measure) -> str:
        """The task's name, with what tells it from others of that name."""
        return self._labels[measure]

    def score(self, measure: Measure, run: Run) -> float:
        """NaN where there is none."""
        found = self.cells.get((measure, run))
        return float("nan") if found is None else found.score

    def run(self, name: str) -> Run:
        """Raises InputError, with the names that there are."""
        for run in self.runs:
            if run.name == name:
                return run
        raise InputError(f"no results of {name!r}: there are {_names(self.runs)}")


def gather(folders: Iterable[str | Path]) -> Gathered:
    """Everything in the folders.

    Raises:
        InputError: for a folder that is missing or holds no outcome, or a file that is none, by name.
    """
    outcomes: list[Outcome] = []
    for given in dict.fromkeys(resolve(folder) for folder in folders):
        found = OutcomeFolder(given).all()
        if not found:
            raise InputError(f"no results in {given}: run an evaluation with --output {given} first")
        outcomes += [one for one in found if one.kind != PART]
    return Gathered(outcomes)


def only_run(folder: str | Path) -> tuple[Gathered, Run]:
    """The folder's run. Raises InputError where it holds several."""
    gathered = gather([folder])
    if len(gathered.runs) > 1:
        raise InputError(
            f"{folder} holds several runs: give --folder {folder} and two names of {_names(gathered.runs)}"
        )
    return gathered, gathered.runs[0]


def _names(runs: Sequence[Run]) -> str:
    return listed([repr(run.name) for run in runs], most=20)


def measure_of(one: Outcome) -> Measure:
    data = tuple((name, _fixed(one.settings[name])) for name in DATA_SETTINGS if one.settings.get(name) is not None)
    task = one.kind if _is_form(one) else one.task
    return Measure(one.kind, one.task_type, task, one.version, one.metric, data)


def _is_form(one: Outcome) -> bool:
    return one.kind in FORMS and one.task_type == one.kind


def _given(one: Outcome) -> dict[str, Any]:
    """Its settings but for those left at null, which is what they are where nobody names them."""
    return {name: value for name, value in one.settings.items() if value is not None}


def _fixed(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _ordered(runs: Iterable[Run]) -> list[Run]:
    """Models as they were met, each one's runs by its settings, 64 before 256."""
    places: dict[str, int] = {}
    for run in (several := list(dict.fromkeys(runs))):
        places.setdefault(run.model, len(places))

    def order(run: Run) -> tuple[int, list[tuple[float, str]]]:
        parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)|([^0-9]+)", run.variant)
        return places[run.model], [(float(number or "inf"), words) for number, words in parts]

    return sorted(several, key=order)


def _latest(outcomes: Sequence[Outcome]) -> tuple[list[Outcome], list[Outcome]]:
    """The last made of each run and measure, in the order of the first; and the others."""
    found: dict[tuple[str, ...], Outcome] = {}
    older = []
    for one in outcomes:
        same = (one.fingerprint, one.kind, one.task, one.version, _fixed(_given(one)))
        other = found.get(same)
        if other is not None:
            older.append(min(one, other, key=lambda each: each.made))
        found[same] = one if other is None else max(other, one, key=lambda each: each.made)
    return list(found.values()), older


def _model_names(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Fingerprint -> its latest name, with the start of the fingerprint where several models have it."""
    latest = {one.fingerprint: one.model for one in sorted(outcomes, key=lambda one: one.made)}
    prints: dict[str, dict[str, None]] = defaultdict(dict)
    for one in outcomes:
        prints[latest[one.fingerprint]][one.fingerprint] = None
    return {
        each: model if len(several) == 1 else f"{model} ({_start(each, several)})"
        for model, several in prints.items()
        for each in several
    }


def _start(fingerprint: str, among: Mapping[str, None]) -> str:
    """As much of a fingerprint as tells it from the others, at least 8 characters."""
    for length in range(8, len(fingerprint)):
        if sum(other.startswith(fingerprint[:length]) for other in among) == 1:
            return fingerprint[:length]
    return fingerprint


def _varying(outcomes: Sequence[Outcome]) -> dict[tuple[str, str], list[str]]:
    """(fingerprint, kind) -> the settings in which its outcomes of one measure differ."""
    cells: dict[tuple[tuple[str, str], Measure, str], list[Outcome]] = defaultdict(list)
    for one in outcomes:
        cells[(one.fingerprint, one.kind), measure_of(one), one.task].append(one)
    found: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for (model, _, _), several in cells.items():
        for key in dict.fromkeys(key for one in several for key in one.settings):
            if len({_fixed(one.settings.get(key)) for one in several}) > 1:
                found[model][key] = None
    return {model: list(keys) for model, keys in found.items()}


def _labels(measures: Sequence[Measure]) -> dict[Measure, str]:
    """Task names; versions, data settings and metrics are added where tasks of one name differ in them."""
    same: dict[tuple[str, str], list[Measure]] = defaultdict(list)
    for one in measures:
        same[one.kind, one.task].append(one)
    labels = {}
    for several in same.values():
        for one in several:
            parts = []
            if len({each.version for each in several}) > 1:
                parts.append(f"version {one.version}")
            if len({each.data for each in several}) > 1:
                parts.append(one.asked)
            if len({each.metric for each in several}) > 1:
                parts.append(one.metric)
            labels[one] = f"{one.task} ({', '.join(parts)})" if parts else one.task
    return labels
