"""Diversity of a training set: a random sample of its texts, measured by words and by a model's vectors.

This module knows nothing about tables.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np

from gritkit.errors import InputError
from gritkit_eval.analysis.comparison import Comparison
from gritkit_eval.analysis.contamination import KIND
from gritkit_eval.analysis.diversity import cluster_entropy, distinct_n, nearest_cosines, similar_share, vendi_score
from gritkit_eval.analysis.geometry import mean_cosine
from gritkit_eval.analysis.models import Embed
from gritkit_eval.analysis.texts import Text, sampled
from gritkit_eval.analysis.words import VERSION, words
from gritkit_eval.outcome import Outcome, OutcomeFolder, versions_of

DIVERSITY = "diversity"
_CLUSTERS = 50


def diversity(
    comparison: Comparison, outcomes: OutcomeFolder, embed: Embed | None = None, *, model: str = "words",
    fingerprint: str = f"words {VERSION}",
) -> Outcome:  # fmt: skip
    """Figures of a sample of the training texts: with ``embed`` by the vectors of the model of that name, else by
    words."""
    settings = comparison.settings
    given: dict[str, Any] = {
        "sample": settings.sample, "seed": settings.seed, "min_words": settings.min_words, "limit": settings.limit,
    }  # fmt: skip
    task = f"{DIVERSITY} of {comparison.train_name}"
    if embed is not None:
        task += " by vectors"
        given["threshold"] = settings.threshold
    before = outcomes.find(KIND, task, comparison.train_version, fingerprint, given)
    if before is not None:
        return dataclasses.replace(before, model=model)
    started = time.perf_counter()
    texts = sampled((text for text, _ in comparison.training_texts()), settings.sample, settings.seed)
    if len(texts) < 2:
        raise InputError(f"{comparison.train_name} has one text: there is nothing to be diverse")
    scores = {"texts": float(len(texts))}
    scores |= by_words(texts) if embed is None else by_vectors(texts, embed, settings.threshold, settings.seed)
    outcome = Outcome(
        kind=KIND, task=task, task_type=DIVERSITY, version=comparison.train_version, model=model,
        fingerprint=fingerprint, metric="distinct-2" if embed is None else "vendi", scores=scores, settings=given,
        seconds=time.perf_counter() - started, versions=versions_of("gritkit"),
    )  # fmt: skip
    outcomes.save(outcome)
    return outcome


def by_words(texts: list[Text]) -> dict[str, float]:
    """What needs no model: distinct-1 to -3 and the share of texts that nearly repeat another."""
    cut = [words(text.text) for text in texts]
    scores = {f"distinct-{n}": distinct_n(cut, n) for n in (1, 2, 3)}
    return scores | {"near copies": similar_share(cut), "mean words": float(np.mean([len(one) for one in cut]))}


def by_vectors(texts: list[Text], embed: Embed, threshold: float, seed: int) -> dict[str, float]:
    """What a model says."""
    vectors = embed([text.text for text in texts])
    nearest = nearest_cosines(vectors)
    return {
        "vendi": vendi_score(vectors),
        "mean cosine": mean_cosine(vectors),
        "mean nearest cosine": float(nearest.mean()),
        f"nearest above {threshold:g}": float((nearest >= threshold).mean()),
        "cluster entropy": cluster_entropy(vectors, clusters=_CLUSTERS, seed=seed),
    }
