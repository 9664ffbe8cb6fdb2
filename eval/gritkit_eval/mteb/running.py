"""Models on tasks: mteb measures, what it found is kept as an Outcome and in mteb's own result files.

What an earlier run measured of the same model, task, mteb and settings is not measured again.

This module knows nothing about where tasks come from, or how figures are shown.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gritkit import metrics
from gritkit.errors import GritkitError
from gritkit_eval.mteb.own_files import OwnFiles
from gritkit_eval.outcome import Outcome, OutcomeFolder, versions_of
from gritkit_eval.report.words import plain

KIND = "mteb"
_BATCH = 1024  # texts that mteb hands over at a time; encoders make batches of their own
_RANKING = re.compile(r"(ndcg|map|recall|mrr)_at_(\d+)")
_BY_QUERY: Mapping[str, Callable[..., float]] = {
    "ndcg": metrics.ndcg_at_k,
    "map": metrics.average_precision_at_k,
    "recall": metrics.recall_at_k,
    "mrr": metrics.mrr_at_k,
}
_NAMED = 3  # subsets that a version names
_ROUNDED = 1.1e-5  # mteb rounds the means of ranking metrics to five decimals


@dataclass(frozen=True)
class Contestant:
    """A model or method that takes part."""

    name: str
    fingerprint: str
    encoder: Callable[[Any], Any]
    """For a task (mteb's), its data loaded: what mteb measures."""
    settings: Callable[[Any], Mapping[str, Any]] = lambda task: {}
    """For a task: what else its figures depend on."""
    takes: Callable[[Any], bool] = lambda task: True
    """Whether the method works for a task."""


def run(
    contestants: Iterable[Contestant], tasks: Sequence[Any], *, outcomes: OutcomeFolder | None = None,
    results: Path | None = None, progress: Callable[[str], None] = lambda line: None,
) -> list[Outcome]:  # fmt: skip
    """Every contestant on every task that it can do, in the order given; arguments as of :func:`evaluate`.

    ``contestants`` may be made one after the other, so that one model is in memory at a time.
    """
    found = []
    for contestant in contestants:
        for number, task in enumerate(tasks, 1):
            name = task.metadata.name
            if not contestant.takes(task):
                continue
            outcome = evaluate(
                contestant.encoder, task, name=contestant.name, fingerprint=contestant.fingerprint,
                settings=contestant.settings(task), outcomes=outcomes, results=results,
            )  # fmt: skip
            progress(
                f"{plain(contestant.name)} {number}/{len(tasks)} {plain(name)}: "
                f"{outcome.metric} {100 * outcome.score:.2f} ({outcome.seconds:.1f} s, {outcome.made})"
            )
            found.append(outcome)
    return found


def evaluate(
    encoder: Any, task: Any, *, name: str, fingerprint: str, settings: Mapping[str, Any],
    outcomes: OutcomeFolder | None, results: Path | None, kind: str = KIND,
) -> Outcome:  # fmt: skip
    """One encoder (mteb's EncoderProtocol or SearchProtocol, or a function from a task to one) on one mteb task.

    ``outcomes``: where earlier figures are looked for, whatever the model was called, and new ones saved. ``results``:
    a folder that mteb reads as its ``ResultCache``, for tasks on all of their examples. Scores of several splits or
    languages are their mean. ``examples`` are given for rankings of one split and one language.

    Raises:
        GritkitError: naming the task, where its data cannot be loaded.
    """
    measured = encoder(task) if callable(encoder) else encoder
    version, settings = version_of(task), {**settings, **drawn_from(task)}
    own = None if results is None or drawn_from(task) else OwnFiles(results)
    earlier = None if outcomes is None else outcomes.find(kind, task.metadata.name, version, fingerprint, settings)
    if earlier is not None:
        if own is not None:
            own.restore(earlier, measured.mteb_model_meta)
        return replace(earlier, model=name)
    with tempfile.TemporaryDirectory() as folder, _loaded(task):
        began = time.monotonic()
        result = _measured(measured, task, Path(folder))
        seconds = time.monotonic() - began
        metric, scores = task.metadata.main_score, _means(result)
        examples = _by_query(task, result, Path(folder))
    outcome = Outcome(
        kind=kind, task=task.metadata.name, task_type=task.metadata.type, version=version, model=name,
        fingerprint=fingerprint, metric=metric, scores=scores, seconds=seconds, examples=examples, settings=settings,
        versions=versions_of("gritkit", "mteb", "numpy", "scikit-learn", "torch", "transformers"),
    )  # fmt: skip
    if own is not None:
        own.save(outcome, result, measured.mteb_model_meta)
    if outcomes is not None:
        outcomes.save(outcome)
    return outcome


def version_of(task: Any) -> str:
    """Of a task's data, of mteb, which is its protocol, and of what is asked: subsets, splits and the main score of the
    task, or of all tasks that it stands for."""
    asked = [
        [
            one.metadata.name,
            one.metadata.revision,
            sorted(one.hf_subsets),
            list(one.eval_splits),
            one.metadata.main_score,
        ]
        for one in parts(task)
    ]
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]
    return f"{task.metadata.revision} mteb {versions_of('mteb').get('mteb')} {_subsets(task)} {digest}"


def _subsets(task: Any) -> str:
    """For people."""
    names = sorted({name for one in parts(task) for name in one.hf_subsets})
    return ",".join(names) if len(names) <= _NAMED else f"{len(names)} subsets"


def drawn_from(task: Any) -> Mapping[str, Any]:
    """How a task's examples were drawn from more: limit and seed. Empty where all are asked."""
    found: Mapping[str, Any] = getattr(task, "drawn", {})
    return found


def parts(task: Any) -> list[Any]:
    """The tasks that an aggregate of mteb's stands for, else the task itself."""
    return list(getattr(task, "tasks", None) or [task])


def _measured(encoder: Any, task: Any, folder: Path) -> Any:
    """mteb's TaskResult; what the encoder predicted is left in the folder. The data must be loaded."""
    import mteb

    for part in parts(task):  # clustering draws from it: every model must meet the same samples
        fresh = type(part)(seed=part.seed)
        part.rng_state, part.np_rng = fresh.rng_state, fresh.np_rng
    model_result = mteb.evaluate(
        encoder, task, cache=None, co2_tracker=False, prediction_folder=folder, show_progress_bar=False,
        encode_kwargs={"batch_size": _BATCH, "show_progress_bar": False},
    )  # fmt: skip
    return model_result.task_results[0]


@contextlib.contextmanager
def _loaded(task: Any) -> Iterator[None]:
    """With the task's data in memory; what had to be fetched for that is let go afterwards."""
    fetched = [part for part in parts(task) if not part.data_loaded]
    try:
        for part in fetched:
            part.load_data()
    except Exception as error:  # the hub's libraries raise whatever their back ends do
        raise GritkitError(
            f"cannot load the data of {task.metadata.name}: {(str(error).splitlines() or [repr(error)])[0]:.200}; "
            "tasks of the hub need a network, data in files (--data) do not"
        ) from None
    yield
    for part in fetched:
        part.unload_data()


def _means(result: Any) -> dict[str, float]:
    """Metric -> mean over splits and subsets. mteb's calibration figures (nauc) are left to its own files."""
    parts = [part for subsets in result.scores.values() for part in subsets]
    names = [
        name
        for name, value in parts[0].items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not name.startswith("nauc")
    ]
    return {
        name: sum(float(part[name]) for part in parts) / len(parts)
        for name in names
        if name != "main_score" and all(isinstance(part.get(name), (int, float)) for part in parts)
    }


def _by_query(task: Any, result: Any, folder: Path) -> list[float] | None:
    """The main metric of every query, in the order of the data, where it is a ranking's and their mean is mteb's."""
    parsed = _RANKING.fullmatch(task.metadata.main_score)
    parts = [(split, part) for split, subsets in result.scores.items() for part in subsets]
    path = folder / f"{task.metadata.name}_predictions.json"
    if parsed is None or len(parts) != 1 or not path.is_file():
        return None
    split, part = parts[0]
    predicted = json.loads(path.read_text(encoding="utf-8"))[part["hf_subset"]][split]
    data = task.dataset[part["hf_subset"]][split]
    metric, k = _BY_QUERY[parsed[1]], int(parsed[2])
    values = [
        metric(metrics.rank_documents(predicted.get(query, {})), data["relevant_docs"][query], k)
        for query in data["queries"]["id"]
        if query in data["relevant_docs"]
    ]
    mean = sum(values) / max(len(values), 1)
    return values if math.isclose(mean, part["main_score"], abs_tol=_ROUNDED) else None
