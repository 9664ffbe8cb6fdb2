"""``gritkit eval similarity``: what the vector space of a model is like on the texts of files.

This module knows nothing about formulas or tables.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from gritkit import GritModel
from gritkit.data.records import Text as Given
from gritkit.data.sources import Problems
from gritkit.errors import InputError, RecordError
from gritkit_eval.analysis.axioms import angles, asymmetry, cosine_distances, triangle_violations
from gritkit_eval.analysis.geometry import alignment, effective_rank, mean_cosine, partition_isotropy, uniformity
from gritkit_eval.analysis.lengths import length_correlation, sensitivity
from gritkit_eval.analysis.models import Vectors, embedder, opened
from gritkit_eval.analysis.neighbours import occurrences, skewness
from gritkit_eval.analysis.similarity_report import Report
from gritkit_eval.analysis.texts import DataFile, data_files, digest, rows_of, sampled, texts_of
from gritkit_eval.analysis.words import words
from gritkit_eval.arguments import check_names
from gritkit_eval.outcome import Outcome, OutcomeFolder, versions_of

KIND = "similarity"
METRIC = "isotropy"
_ALIKE = 4.0
"""The score of a pair of STS (0 to 5) from which it counts as belonging together, as in Wang and Isola 2020."""
_LONG = 8
"""Words that a text has at least for its length to be changed."""
_FEWEST = 4


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One measurement."""

    models: tuple[str, ...]
    texts: tuple[Path, ...]
    instruction: str | None = None
    """Of the query role, where the two roles are compared."""
    k: int = 10
    """Of N_k."""
    limit: int = 500
    """Texts, and pairs, of each file, drawn at random."""
    seed: int = 0


@dataclass(frozen=True)
class Material:
    """What is embedded of one file."""

    file: DataFile
    texts: list[str]
    """Different ones, in random order."""
    pairs: list[tuple[str, str]]
    """Texts that belong together; empty where the file has none."""
    version: str


def run(settings: Settings, outcomes: OutcomeFolder) -> Report:
    """Each file on each model.

    Raises:
        RecordError: naming file and line of every bad row, before any model is loaded.
        InputError: for a file with too few texts, and an instruction that a model has no place for.
    """
    check_names(settings.models)
    material = [load(file, settings) for file in data_files(settings.texts)]
    found = []
    for given in settings.models:
        name, model = opened(given)
        for one in tqdm(material, name, disable=None, unit=" files"):
            found.append(_outcome(name, model, one, settings, outcomes))
    return Report(settings.limit, found)


def load(file: DataFile, settings: Settings) -> Material:
    """The texts and pairs of one file. Raises as :func:`run`."""
    problems = Problems("nothing was measured")
    worded = (text.text for text in texts_of(file, problems) if words(text.text))
    drawn = list(dict.fromkeys(sampled(worded, settings.limit, settings.seed)))
    pairs = sampled(_pairs(file, problems), settings.limit, settings.seed)
    problems.check()
    if len(drawn) < max(_FEWEST, settings.k + 1):
        raise InputError(
            f"{file.name} has {len(drawn)} different texts and {max(_FEWEST, settings.k + 1)} are needed: "
            "give another file, or a smaller k"
        )
    order = np.random.default_rng(settings.seed).permutation(len(drawn))
    return Material(file, [drawn[at] for at in order], pairs, digest([file]))


def _pairs(file: DataFile, problems: Problems) -> Any:
    ignored = Problems()  # rows that are none were reported when the texts were read
    for line, row in rows_of(file, ignored):
        try:
            pair = pair_of(row)
        except RecordError as error:
            problems.add(f"{file.name}:{line}", str(error))
            continue
        if pair is not None:
            yield pair


def pair_of(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """Two texts that belong together: a query and its first positive, sentences of a score of at least 4, a premise and
    what it entails (label 1). None for any other row. Raises RecordError for a query or positive that is no text."""
    if row.get("query") is not None and isinstance(row.get("pos"), (list, tuple)) and row["pos"]:
        return Given.of(row["query"], "query").text, Given.of(row["pos"][0], "pos[0]").text
    for first, second, enough in (("sentence1", "sentence2", _ALIKE), ("premise", "hypothesis", 1)):
        pair, score = (row.get(first), row.get(second)), row.get("score" if enough == _ALIKE else "label")
        if all(isinstance(text, str) and text.strip() for text in pair) and isinstance(score, (int, float)):
            return (str(pair[0]), str(pair[1])) if score >= enough else None
    return None


def _outcome(name: str, model: GritModel, material: Material, settings: Settings, outcomes: OutcomeFolder) -> Outcome:
    given = {
        "instruction": settings.instruction, "k": settings.k, "limit": settings.limit, "seed": settings.seed,
        "max_length": model.embedding_config.max_length,
    }  # fmt: skip
    before = outcomes.find(KIND, material.file.name, material.version, model.fingerprint, given)
    if before is not None:
        return dataclasses.replace(before, model=name)
    started = time.perf_counter()
    scores = measure(model, material, settings)
    outcome = Outcome(
        kind=KIND, task=material.file.name, task_type=KIND, version=material.version, model=name,
        fingerprint=model.fingerprint, metric=METRIC, scores=scores, settings=given,
        seconds=time.perf_counter() - started, versions=versions_of("gritkit", "torch", "transformers"),
    )  # fmt: skip
    outcomes.save(outcome)
    return outcome


def measure(model: GritModel, material: Material, settings: Settings) -> dict[str, float]:
    """All figures of one model on one file."""
    vectors = embedder(model)(material.texts)
    queries = model.embed(material.texts, role="query", instruction=settings.instruction, truncate=True)
    scores = {"texts": float(len(material.texts)), "pairs": float(len(material.pairs))}
    scores |= _shape(vectors) | _hubs(vectors, settings.k)
    scores["alignment"] = _alignment(model, material.pairs, settings.instruction)
    roles = asymmetry(queries, vectors)
    scores |= {
        "asymmetry": roles.mean, "largest asymmetry": roles.largest, "asymmetry / spread": roles.relative,
        "own cosine": roles.own,
    }  # fmt: skip
    for what, distances in (("1 - cosine", cosine_distances(vectors)), ("angle", angles(vectors))):
        violations = triangle_violations(distances, seed=settings.seed)
        scores |= {f"triangles of {what}": violations.share, f"excess of {what}": violations.size}
    return scores | _lengths(model, material.texts, vectors, settings.seed)


def _shape(vectors: Vectors) -> dict[str, float]:
    rank = effective_rank(vectors)
    return {
        METRIC: partition_isotropy(vectors), "mean cosine": mean_cosine(vectors), "effective rank": rank,
        "effective rank / dim": rank / vectors.shape[1], "uniformity": uniformity(vectors),
    }  # fmt: skip


def _hubs(vectors: Vectors, k: int) -> dict[str, float]:
    counts = occurrences(vectors, k)
    return {
        "hubness": skewness(counts), "anti-hubs": float((counts == 0).mean()), "largest hub": float(counts.max()),
    }  # fmt: skip


def _alignment(model: GritModel, pairs: Sequence[tuple[str, str]], instruction: str | None) -> float:
    if not pairs:
        return float("nan")
    first = model.embed([one for one, _ in pairs], role="query", instruction=instruction, truncate=True)
    return alignment(first, embedder(model)([other for _, other in pairs]))


def _lengths(model: GritModel, texts: Sequence[str], vectors: Vectors, seed: int) -> dict[str, float]:
    counts = [len(words(text)) for text in texts]
    scores = {"length correlation": length_correlation(counts, vectors, seed=seed)}
    long = [at for at, count in enumerate(counts) if count >= _LONG]
    scores["long texts"] = float(len(long))
    if len(long) >= _FEWEST:
        changed = sensitivity([texts[at] for at in long], vectors[long], embedder(model))
        scores |= {f"cosine {what}": value for what, value in changed.items()}
    return scores
