"""Which axioms of a distance a similarity of vectors keeps: symmetry of the two roles, the triangle inequality.

The cosine of two vectors is symmetric; a model that embeds a text differently as a query and as a passage is not.
People's judgements keep neither axiom (Tversky 1977, "Features of similarity"): a violation is no error.

This module knows nothing about texts or models.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gritkit.errors import InputError
from gritkit_eval.analysis.geometry import unit

Floats = npt.NDArray[np.floating[Any]]
_ROUNDING = 1e-6
_ALL = 1_000_000
"""Triples up to which all are looked at."""


@dataclass(frozen=True)
class Asymmetry:
    """|s(a as query, b as passage) - s(b as query, a as passage)| over all pairs of different texts."""

    mean: float
    largest: float
    relative: float
    """The mean / the standard deviation of s over these pairs; NaN where that is 0."""
    own: float
    """The mean of s(a as query, a as passage); 1 where both roles give one vector."""


def asymmetry(queries_ND: Floats, passages_ND: Floats) -> Asymmetry:
    """Of the same N texts in the two roles, row by row."""
    queries, passages = unit(queries_ND), unit(passages_ND)
    if queries.shape != passages.shape or len(queries) < 2:
        raise InputError(f"needed are the same two or more texts in both roles, not {len(queries)} and {len(passages)}")
    scores_NN = queries @ passages.T
    upper = np.triu_indices(len(queries), 1)
    differences = np.abs(scores_NN - scores_NN.T)[upper]
    spread = float(np.concatenate([scores_NN[upper], scores_NN.T[upper]]).std())
    mean = float(differences.mean())
    return Asymmetry(
        mean=mean,
        largest=float(differences.max()),
        relative=mean / spread if spread > 1e-12 else float("nan"),
        own=float(np.diagonal(scores_NN).mean()),
    )


@dataclass(frozen=True)
class Triangles:
    """How often and by how much d(i, k) > d(i, j) + d(j, k), over triples of different vectors and any middle one."""

    share: float
    size: float
    """The mean excess where it is violated; 0 where it never is."""
    largest: float


def triangle_violations(distances_NN: Floats, *, triples: int = 200_000, seed: int = 0) -> Triangles:
    """Of a symmetric matrix of distances: over all triples up to a million, else over ``triples`` random ones.

    An excess of up to 1e-6 is rounding. Each triple is asked once, with its longest side against the other two: no
    other side can violate the inequality.
    """
    num = len(distances_NN)
    if num < 3:
        raise InputError(f"a triangle needs three vectors, not {num}")
    if math.comb(num, 3) <= _ALL:
        chosen = np.array(list(itertools.combinations(range(num), 3)))
    else:
        drawn = np.random.default_rng(seed).integers(0, num, size=(2 * triples, 3))
        different = (drawn[:, 0] != drawn[:, 1]) & (drawn[:, 0] != drawn[:, 2]) & (drawn[:, 1] != drawn[:, 2])
        chosen = drawn[different][:triples]
    first, second, third = chosen.T
    sides = np.stack([distances_NN[first, second], distances_NN[second, third], distances_NN[first, third]])
    excess = 2 * sides.max(axis=0) - sides.sum(axis=0)
    violated = excess[excess > _ROUNDING]
    return Triangles(
        share=len(violated) / len(excess),
        size=float(violated.mean()) if len(violated) else 0.0,
        largest=float(violated.max()) if len(violated) else 0.0,
    )


def cosine_distances(vectors_ND: Floats) -> npt.NDArray[np.float64]:
    """1 - cosine [N, N], 0 to 2: half the squared distance of unit vectors, which is no metric."""
    vectors = unit(vectors_ND)
    distances: npt.NDArray[np.float64] = 1 - np.clip(vectors @ vectors.T, -1, 1)
    return distances


def angles(vectors_ND: Floats) -> npt.NDArray[np.float64]:
    """The angle of every pair [N, N] in radians: the way along the sphere, which is a metric, so that a violation
    here is a mistake of the measurement."""
    vectors = unit(vectors_ND)
    found: npt.NDArray[np.float64] = np.arccos(np.clip(vectors @ vectors.T, -1, 1))
    return found
