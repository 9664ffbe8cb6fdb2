"""Which vectors are nearest, scored alike by every store; and how well an index finds them.

A database proposes candidates in whatever arithmetic it has. The scores that count are computed here, in double
precision and row by row, so that equal vectors get equal scores wherever they lie and ties are decided by id.

This module knows nothing about databases, and imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from gritkit.rag.store import Row, Vector

S = TypeVar("S")

TOP_K = 10
"""Recall is measured on as many."""
CLOSE = 1e-5
"""Two dot products of unit vectors in single precision that differ by less may be equal."""
WANTED_RECALL = 0.98
"""An index that finds less of the true ten nearest, on average, is not used."""
_MEASURED_RECALL = 0.99  # asked of the sample, so that other queries still find WANTED_RECALL
_SPARE = 8  # candidates beyond what was asked for, so that a tie at the end is usually decided at once


def dots(vectors: NDArray[np.float32], query: Vector) -> NDArray[np.float64]:
    """Dot products [N] of vectors [N, D] with a query [D]; equal rows get equal results."""
    return np.asarray(np.vecdot(vectors.astype(np.float64), query.astype(np.float64)))


def ranked(rows: Iterable[Row], query: Vector, top_k: int) -> list[tuple[Row, float]]:
    """The best of these rows, which bring their vectors; equal ones by id. The vectors are left out of the result."""
    held = list(rows)
    if not held:
        return []
    scores = dots(np.stack([row.vector for row in held if row.vector is not None]), query).tolist()
    order = sorted(range(len(held)), key=lambda one: (-scores[one], held[one].id))[:top_k]
    return [(replace(held[one], vector=None), scores[one]) for one in order]


def exact(propose: Callable[[int], list[Row]], query: Vector, top_k: int) -> list[tuple[Row, float]]:
    """The nearest rows from a database that proposes its ``limit`` best, whatever it does with ties."""
    limit = top_k + _SPARE
    while True:
        rows = propose(limit)
        found = ranked(rows, query, len(rows))
        if len(rows) < limit or found[top_k - 1][1] - found[-1][1] > CLOSE:
            return found[:top_k]
        limit *= 8


def sample_queries(vectors: NDArray[np.float32], seed: int = 0) -> NDArray[np.float32]:
    """Queries [N, D] to measure an index with, from N of its vectors: each on the way to another one.

    A question is not a passage: it lies farther from every passage than they lie from each other. A stored vector
    itself would be found by any index.
    """
    rng = np.random.default_rng(seed)
    others = vectors[rng.permutation(len(vectors))]
    mixed = vectors + rng.uniform(0.2, 1.0, (len(vectors), 1)).astype(np.float32) * others
    lengths = np.linalg.norm(mixed, axis=1, keepdims=True)
    return np.asarray(mixed / np.maximum(lengths, 1e-12), dtype=np.float32)


def true_scores(batches: Iterable[NDArray[np.float32]], queries: NDArray[np.float32]) -> list[list[float]]:
    """The scores of the ten rows nearest to each query, best first, from all rows, a batch at a time."""
    best_QK = np.empty((len(queries), 0), np.float32)
    for vectors in batches:
        best_QK = np.concatenate([best_QK, queries @ vectors.T], axis=1)
        if best_QK.shape[1] > TOP_K:
            best_QK = np.partition(best_QK, -TOP_K, axis=1)[:, -TOP_K:]
    return [row[::-1] for row in np.sort(best_QK, axis=1).astype(float).tolist()]


def recall(found: Sequence[Sequence[float]], true: Sequence[Sequence[float]]) -> float:
    """Part of the true nearest that were found, by their scores: one of two equal rows is as good as the other."""
    hits = sum(
        sum(score >= wanted[-1] - CLOSE for score in got[: len(wanted)])
        for got, wanted in zip(found, true, strict=True)
        if wanted
    )
    return hits / max(1, sum(map(len, true)))


def tuned(
    settings: Sequence[S],
    search: Callable[[S, Vector, int], Sequence[float]],
    queries: NDArray[np.float32],
    true: Sequence[Sequence[float]],
) -> tuple[int | None, float]:
    """Which of the settings, cheapest first, is the first of enough recall, or None; and the recall reached.

    ``search`` gives the scores of what it finds for a query, best first; ``true`` are those of the real nearest.
    """
    best = 0.0
    for place, setting in enumerate(settings):
        reached = recall([search(setting, query, len(one)) for query, one in zip(queries, true, strict=True)], true)
        best = max(best, reached)
        if reached >= _MEASURED_RECALL:
            return place, reached
    return None, best
