"""``gritkit eval efficiency``: what a model's quality costs, and what cheaper forms of it lose.

Quality is the mean of the main scores of local mteb tasks; each score is an outcome of kind "mteb" too, shared with
``gritkit eval mteb``.

This module knows nothing about tables.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from gritkit import GritModel
from gritkit.backbone import Backbone, first_layers
from gritkit_eval.analysis.efficiency_report import Report
from gritkit_eval.analysis.models import opened
from gritkit_eval.analysis.throughput import ROUNDS, Rate, rate, texts_of_tasks
from gritkit_eval.analysis.variants import Cheaper, Remembering, Variant, variants_of
from gritkit_eval.arguments import check_names
from gritkit_eval.bench.report import machine
from gritkit_eval.mteb.local import load_tasks
from gritkit_eval.mteb.running import KIND as TASKS
from gritkit_eval.mteb.running import evaluate, version_of
from gritkit_eval.outcome import PART, Outcome, OutcomeFolder, versions_of

KIND = "efficiency"
METRIC = "average"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One measurement."""

    models: tuple[str, ...]
    data: Path
    tasks: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    dims: tuple[int, ...] = ()
    """Empty: those that a checkpoint was trained for, else halves."""
    layers: tuple[int, ...] = ()
    """Empty: half and a quarter of them."""
    max_lengths: tuple[int, ...] = ()
    dtypes: tuple[str, ...] = ("bfloat16",)
    limit: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class _Loaded:
    """A model in one type, and how it reads."""

    name: str
    model: GritModel
    dtype: str
    layers: int | None
    max_length: int | None


def run(settings: Settings, outcomes: OutcomeFolder) -> Report:
    """Every variant of every model.

    Raises:
        RecordError: naming file and line of every bad record, before any model is loaded.
        InputError: for an unknown task, type, dtype, or a dimension, layer or length that a model does not have.
    """
    check_names(settings.models)
    tasks = load_tasks(settings.data, settings.tasks, settings.types, settings.limit, settings.seed)
    texts = texts_of_tasks(tasks, settings.seed)
    found: list[Outcome] = []
    for given in settings.models:
        name, model = opened(given, dtype="float32")
        config = model.embedding_config
        variants = variants_of(
            dim=model.dim, matryoshka=config.matryoshka_dims, num_layers=len(model.windows),
            context_length=model.context_length, max_length=min(config.max_length, model.context_length),
            dims=settings.dims, layers=settings.layers, max_lengths=settings.max_lengths, dtypes=settings.dtypes,
        )  # fmt: skip
        for (dtype, layers, max_length), group in groupby(variants, lambda one: one.reading):
            if str(model.dtype) != f"torch.{dtype}":
                _, model = opened(given, dtype=dtype)
            loaded = _Loaded(name, model, dtype, layers, max_length)
            found += _measured(loaded, list(group), tasks, texts, settings, outcomes)
    return Report([task.metadata.name for task in tasks], settings.limit, found)


def _measured(
    loaded: _Loaded, variants: Sequence[Variant], tasks: Sequence[Any], texts: Sequence[str], settings: Settings,
    outcomes: OutcomeFolder,
) -> Iterator[Outcome]:  # fmt: skip
    """Variants that read alike: every task's texts are embedded once for all of them."""
    started = time.perf_counter()
    model = loaded.model
    whole = Remembering(model, name=loaded.name, layers=loaded.layers, max_length=loaded.max_length)
    scores: dict[Variant, list[Outcome]] = {variant: [] for variant in variants}
    for task in tqdm(tasks, f"{loaded.name} {variants[0].name}", disable=None, unit=" tasks"):
        for variant, made in scores.items():
            made.append(_on(task, Cheaper(whole, variant), outcomes))
        whole.forget()
    speed = _rate(loaded, texts, settings, outcomes)
    version = hashlib.sha256("\n".join(sorted(version_of(task) for task in tasks)).encode()).hexdigest()[:32]
    for variant, made in scores.items():
        given = {
            "variant": _plain(variant), "name": variant.name, "limit": settings.limit,
            "seed": settings.seed, "tasks": [task.metadata.name for task in tasks], "machine": machine(),
        }  # fmt: skip
        outcome = Outcome(
            kind=KIND, task=variant.name, task_type=KIND, version=version, model=loaded.name,
            fingerprint=model.fingerprint, metric=METRIC, scores=_figures(model, whole, variant, made, speed),
            seconds=time.perf_counter() - started, settings=given,
            versions=versions_of("gritkit", "mteb", "torch", "transformers"),
        )  # fmt: skip
        outcomes.save(outcome)
        yield outcome


def _plain(variant: Variant) -> dict[str, Any]:
    """Layers that are all of them are left out, so that outcomes of before there was a choice are known again."""
    fields = dataclasses.asdict(variant)
    return fields if variant.layers is not None else {name: fields[name] for name in fields if name != "layers"}


def _on(task: Any, encoder: Cheaper, outcomes: OutcomeFolder) -> Outcome:
    """Named so that the whole model stands beside others in tables of tasks, and its variants apart from it."""
    name, variant = encoder.whole.name, encoder.variant
    return evaluate(
        encoder, task, name=f"{name}, {variant.name}" if variant.curve else name,
        fingerprint=encoder.whole.model.fingerprint, settings=encoder.settings(task.metadata), outcomes=outcomes,
        results=None, kind=PART if variant.curve else TASKS,
    )  # fmt: skip


def _figures(
    model: GritModel, whole: Remembering, variant: Variant, made: Sequence[Outcome], speed: Rate
) -> dict[str, float]:
    by_type: dict[str, list[float]] = {}
    for one in made:
        by_type.setdefault(one.task_type, []).append(one.score)
    return {
        METRIC: math.fsum(one.score for one in made) / len(made),
        "parameters": float(_num_parameters(model, variant.layers)),
        "layers": float(variant.layers or len(model.windows)),
        "dimensions": float(variant.dim or model.dim),
        "max tokens": float(whole.max_length),
        "bytes per vector": float(variant.num_bytes(model.dim)),
        "texts/s": speed.texts,
        "tokens/s": speed.tokens,
        **{kind: math.fsum(values) / len(values) for kind, values in by_type.items()},
    }


def _num_parameters(model: GritModel, layers: int | None) -> int:
    """Of all that runs: without those of the layers that do not."""
    total = sum(parameter.numel() for parameter in model.parameters())
    if layers is None:
        return total
    decoder: nn.Module = Backbone(model.lm).base.get_decoder()
    view = first_layers(decoder, len(model.windows), layers)
    return total - sum(one.numel() for one in decoder.parameters()) + sum(one.numel() for one in view.parameters())


def _rate(loaded: _Loaded, texts: Sequence[str], settings: Settings, outcomes: OutcomeFolder) -> Rate:
    """Measured once on a machine."""
    version = hashlib.sha256(repr(list(texts)).encode("utf-8", "surrogatepass")).hexdigest()[:32]
    layers = {} if loaded.layers is None else {"layers": loaded.layers}
    given = {
        "dtype": loaded.dtype, **layers, "max_length": loaded.max_length, "device": str(loaded.model.device),
        "rounds": ROUNDS, "machine": machine(),
    }  # fmt: skip
    before = outcomes.find(KIND, "throughput", version, loaded.model.fingerprint, given)
    if before is not None:
        return Rate(before.scores["texts/s"], before.scores["tokens/s"])
    started = time.perf_counter()
    found = rate(loaded.model, texts, layers=loaded.layers, max_length=loaded.max_length)
    outcomes.save(
        Outcome(
            kind=KIND,
            task="throughput",
            task_type="throughput",
            version=version,
            model=loaded.name,
            fingerprint=loaded.model.fingerprint,
            metric="texts/s",
            scores={"texts/s": found.texts, "tokens/s": found.tokens},
            seconds=time.perf_counter() - started,
            settings=given,
            versions=versions_of("gritkit", "torch", "transformers"),
        )
    )
    return found
