"""Contamination of evaluation files by training files: copies, shared n-grams, near ones by a model's vectors.

The evaluation's texts are held in memory; training files of any size stream past them, once for the words and once for
the vectors. What is found for each evaluation file is an outcome, and its worst texts stand beside it, each with the
place on both sides.

This module knows nothing about tables.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from gritkit.errors import InputError
from gritkit.files import write_atomic
from gritkit.search import top_k
from gritkit_eval.analysis.comparison import Comparison, Settings
from gritkit_eval.analysis.models import Embed
from gritkit_eval.analysis.ngrams import GramSet, Overlap
from gritkit_eval.analysis.texts import DataFile, Place, Text
from gritkit_eval.analysis.words import VERSION, words
from gritkit_eval.outcome import Outcome, OutcomeFolder, versions_of

KIND = "overlap"
CONTAMINATION, BY_VECTORS = "contamination", "contamination by vectors"
RANDOM = "cosine of random pairs"
"""The figure: the mean over all pairs of an evaluation text and a training text."""
_WORDS = f"words {VERSION}"
_BLOCK = 1024


@dataclass(frozen=True)
class Offender:
    """A text of an evaluation file and the training text that holds the most of it."""

    evaluation: str
    train: str
    share: float
    """Of its n-grams, 1 for a copy; the cosine, where it was found by vectors."""
    copy: bool
    text: str


@dataclass(frozen=True)
class Finding:
    """One evaluation file: its figures and its worst texts."""

    file: str
    outcome: Outcome
    offenders: list[Offender]


def by_words(comparison: Comparison, outcomes: OutcomeFolder) -> list[Finding]:
    """Copies and shared n-grams, one finding for each evaluation file; what was found before is not looked for."""
    settings = comparison.settings
    given = {
        "n": sorted(settings.ns),
        "min_words": settings.min_words,
        "limit": settings.limit,
        "worst": settings.worst,
    }

    def measure(files: Sequence[DataFile]) -> Iterator[_Measured]:
        texts = [text for file in files for text in comparison.texts[file]]
        copies, shared = _meet(comparison, texts)
        start = 0
        for file in files:
            rows = slice(start, start + len(comparison.texts[file]))
            start = rows.stop
            yield _of_words(texts[rows], copies[rows], {n: found[rows] for n, found in shared.items()}, settings.worst)

    return _resumed(comparison, outcomes, measure, CONTAMINATION, "words", _WORDS, given)


def by_vectors(
    comparison: Comparison, outcomes: OutcomeFolder, embed: Embed, *, model: str, fingerprint: str
) -> list[Finding]:
    """The nearest training text of each text, exact, a block of training texts at a time."""
    settings = comparison.settings
    given = {
        "threshold": settings.threshold, "min_words": settings.min_words, "limit": settings.limit,
        "worst": settings.worst, "random pairs": True,
    }  # fmt: skip

    def measure(files: Sequence[DataFile]) -> Iterator[_Measured]:
        texts = [text for file in files for text in comparison.texts[file]]
        near = _nearest(comparison, texts, embed)
        start = 0
        for file in files:
            rows = slice(start, start + len(comparison.texts[file]))
            start = rows.stop
            yield _of_vectors(texts[rows], near.part(rows), settings)

    return _resumed(comparison, outcomes, measure, BY_VECTORS, model, fingerprint, given)


@dataclass(frozen=True)
class _Measured:
    metric: str
    scores: dict[str, float]
    examples: list[float]
    offenders: list[Offender]


def _resumed(
    comparison: Comparison, outcomes: OutcomeFolder, measure: Callable[[Sequence[DataFile]], Iterator[_Measured]],
    task_type: str, model: str, fingerprint: str, settings: Mapping[str, Any],
) -> list[Finding]:  # fmt: skip
    """What is there is read, the rest measured in one go and saved."""
    names = {file: f"{task_type}: {file.name} in {comparison.train_name}" for file in comparison.texts}
    versions = {file: comparison.version(file) for file in comparison.texts}
    found: dict[DataFile, Finding] = {}
    for file in comparison.texts:
        before = outcomes.find(KIND, names[file], versions[file], fingerprint, settings)
        offenders = None if before is None else _load(outcomes, before)
        if before is not None and offenders is not None:
            found[file] = Finding(file.name, replace(before, model=model), offenders)
    missing = [file for file in comparison.texts if file not in found]
    started = time.perf_counter()
    for file, measured in zip(missing, measure(missing) if missing else (), strict=True):
        outcome = Outcome(
            kind=KIND, task=names[file], task_type=task_type, version=versions[file], model=model,
            fingerprint=fingerprint, metric=measured.metric, scores=measured.scores, examples=measured.examples,
            seconds=time.perf_counter() - started, settings=settings, versions=versions_of("gritkit"),
        )  # fmt: skip
        lines = "".join(json.dumps(asdict(one)) + "\n" for one in measured.offenders)
        write_atomic(_beside(outcomes.save(outcome)), lines.encode())
        found[file] = Finding(file.name, outcome, measured.offenders)
    return [found[file] for file in comparison.texts]


# -- by words ----------------------------------------------------------------------------------------------------


def _meet(comparison: Comparison, texts: Sequence[Text]) -> tuple[list[Place | None], dict[int, list[_Shared]]]:
    """For each text, where a copy of it stands, and for each n what is shared and with which place."""
    cut = [words(text.text) for text in texts]
    sets = {n: GramSet(cut, n) for n in sorted(set(comparison.settings.ns))}
    copies: dict[str, Place | None] = dict.fromkeys(map(" ".join, cut))
    places: dict[int, Place] = {}  # of training texts that were the first to hold something
    stream = tqdm(comparison.training_texts(), "training texts", disable=None, unit=" texts")
    for number, (text, found) in enumerate(stream):
        whole = " ".join(found)
        if whole in copies and copies[whole] is None:
            copies[whole] = text.place
        new = [grams.meet(number, found) for grams in sets.values()]
        if any(new):
            places[number] = text.place
    shared = {
        n: [_Shared(one, None if one.source is None else places[one.source]) for one in grams.overlaps()]
        for n, grams in sets.items()
    }
    return [copies[" ".join(one)] for one in cut], shared


@dataclass(frozen=True)
class _Shared:
    overlap: Overlap
    place: Place | None


def _of_words(
    texts: Sequence[Text], copies: Sequence[Place | None], shared: Mapping[int, Sequence[_Shared]], worst: int
) -> _Measured:
    scores = {"texts": float(len(texts)), "copies": sum(place is not None for place in copies) / len(texts)}
    for n, found in shared.items():
        scores[f"any {n}-gram"] = sum(one.overlap.shared > 0 for one in found) / len(texts)
        scores[f"share of {n}-grams"] = sum(one.overlap.share for one in found) / len(texts)
    longest = max(shared)
    offenders = []
    for text, copy, one in zip(texts, copies, shared[longest], strict=True):
        place = copy or one.place
        if place is not None:
            offenders.append(
                Offender(str(text.place), str(place), one.overlap.share, copy is not None, _short(text.text))
            )
    # Of two texts that are held whole the longer one says more: a short one may occur by chance.
    offenders.sort(key=lambda one: (-one.share, -len(one.text)))
    examples = [float(one.overlap.shared > 0) for one in shared[longest]]
    return _Measured(f"any {longest}-gram", scores, examples, offenders[:worst])


# -- by vectors --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Near:
    """What the training texts are to each text: the best cosine, where that is, and the mean cosine of all."""

    best: npt.NDArray[np.float32]
    places: list[Place | None]
    mean: npt.NDArray[np.float64]

    def part(self, rows: slice) -> _Near:
        return _Near(self.best[rows], self.places[rows], self.mean[rows])


def _nearest(comparison: Comparison, texts: Sequence[Text], embed: Embed) -> _Near:
    """Of each text among all training texts."""
    queries = embed([text.text for text in texts])
    best = np.full(len(texts), -np.inf, np.float32)
    places: list[Place | None] = [None] * len(texts)
    total, count = np.zeros(queries.shape[1]), 0
    stream = tqdm(comparison.training_texts(), "training texts", disable=None, unit=" texts")
    for block in _blocks(text for text, _ in stream):
        vectors = embed([text.text for text in block])
        total += vectors.sum(axis=0, dtype=np.float64)
        count += len(block)
        scores, indices = top_k(queries, vectors, 1)
        for row in np.flatnonzero(scores[:, 0] > best).tolist():
            best[row], places[row] = scores[row, 0], block[indices[row, 0]].place
    return _Near(best, places, queries @ (total / count))


def _of_vectors(texts: Sequence[Text], found: _Near, settings: Settings) -> _Measured:
    cosines, places = found.best, found.places
    near = cosines >= settings.threshold
    metric = f"cosine {settings.threshold:g}"
    scores = {"texts": float(len(texts)), metric: float(near.mean()), RANDOM: float(found.mean.mean())}
    scores["mean nearest cosine"] = float(cosines.mean())
    scores |= {f"nearest cosine p{at}": float(np.percentile(cosines, at)) for at in (50, 95)}
    order = np.argsort(-cosines, kind="stable")[: settings.worst].tolist()
    offenders = [
        Offender(str(texts[at].place), str(places[at]), float(cosines[at]), False, _short(texts[at].text))
        for at in order
        if near[at]
    ]
    return _Measured(metric, scores, near.astype(float).tolist(), offenders)


def _blocks(texts: Iterable[Text]) -> Iterator[list[Text]]:
    block: list[Text] = []
    for text in texts:
        block.append(text)
        if len(block) == _BLOCK:
            yield block
            block = []
    if block:
        yield block


# -- the worst texts, beside their outcome -----------------------------------------------------------------------


def _beside(path: Path) -> Path:
    """Not ``.json``: a folder of outcomes holds no other files of that kind."""
    return path.with_suffix(".offenders.jsonl")


def _load(outcomes: OutcomeFolder, outcome: Outcome) -> list[Offender] | None:
    """None where the file is not there. Raises InputError for a damaged one."""
    for path in (outcomes.folder / KIND).glob(f"*/*-{outcome.key[:16]}.offenders.jsonl"):
        try:
            return [Offender(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path} is damaged: delete it and measure again ({error})") from None
    return None


def _short(text: str) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= 160 else one_line[:157] + "..."
