"""The shape of a cloud of vectors: how its directions are used, and how pairs lie in it.

This module knows nothing about texts or models.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gritkit.errors import InputError

Floats = npt.NDArray[np.floating[Any]]
_BLOCK = 1024
_ROUNDING = 1e-24
"""Of the squares of differences between float64 vectors of length 1."""


def unit(vectors_ND: Floats) -> npt.NDArray[np.float64]:
    """Vectors of length 1 in float64. Raises InputError for no matrix, and for one that is zero or not finite."""
    vectors = np.asarray(vectors_ND, np.float64)
    if vectors.ndim != 2 or not vectors.size:
        raise InputError(f"vectors must be a matrix of one row each, not of shape {vectors.shape}")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0)))
    if len(bad):
        raise InputError(f"vector {bad[0]} has no direction: its length is {lengths[bad[0], 0]}")
    result: npt.NDArray[np.float64] = vectors / lengths
    return result


def mean_cosine(vectors_ND: Floats) -> float:
    """The mean cosine of all pairs of different vectors; 0 in an isotropic space, 1 where all point one way.

    Ethayarajh 2019 (arXiv 1909.00512) estimates it from random pairs; over all of them it is
    (|sum of x|^2 - N) / (N (N - 1)) for unit x.
    """
    vectors = _several(vectors_ND)
    num = len(vectors)
    total = vectors.sum(axis=0)
    return float((total @ total - num) / (num * (num - 1)))


def partition_isotropy(vectors_ND: Floats) -> float:
    """min Z(c) / max Z(c) over the eigenvectors c of X^T X, with Z(c) = sum over x of exp(c . x); 1 is isotropic.

    Mu and Viswanath 2018 (arXiv 1702.01417, section 2). An eigenvector's sign is arbitrary, so both are
    taken. For unit vectors it is at least exp(-2).
    """
    vectors = unit(vectors_ND)
    _, directions_DD = np.linalg.eigh(vectors.T @ vectors)
    projected = vectors @ directions_DD
    sums = np.concatenate([np.exp(projected).sum(axis=0), np.exp(-projected).sum(axis=0)])
    return float(sums.min() / sums.max())


def effective_rank(vectors_ND: Floats) -> float:
    """Directions that the cloud fills: exp of the entropy of the eigenvalues of its covariance, over their sum.

    Roy and Vetterli 2007 ("The effective rank"), here of the covariance. Between 1 and D; NaN for a single point.
    """
    vectors = _several(vectors_ND)
    values = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False) ** 2
    return entropy_rank(np.where(values > _ROUNDING * len(vectors), values, 0))


def entropy_rank(values: Floats) -> float:
    """exp(-sum of p log p) with p = values / their sum, of values that are not negative; NaN where all are 0.

    Values below 1e-12 of the sum are rounding.
    """
    total = values.sum()
    if not total > 0:
        return float("nan")
    shares = values / total
    shares = shares[shares > 1e-12]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def alignment(first_ND: Floats, second_ND: Floats) -> float:
    """The mean squared distance |x - y|^2 of unit vectors that belong together, 0 to 4; smaller is better.

    Wang and Isola 2020 (arXiv 2005.10242, section 4.1), alpha = 2.
    """
    first, second = unit(first_ND), unit(second_ND)
    if first.shape != second.shape:
        raise InputError(f"pairs need two matrices of one shape, not {first.shape} and {second.shape}")
    return float(((first - second) ** 2).sum(axis=1).mean())


def uniformity(vectors_ND: Floats) -> float:
    """log of the mean of exp(-2 |x - y|^2) over all pairs of different unit vectors, -8 to 0; smaller is better.

    Wang and Isola 2020 (arXiv 2005.10242, section 4.1), t = 2. Computed a block of rows at a time.
    """
    vectors = _several(vectors_ND)
    num, total = len(vectors), 0.0
    for start in range(0, num, _BLOCK):
        cosines = vectors[start : start + _BLOCK] @ vectors.T
        total += float(np.exp(-2 * np.maximum(2 - 2 * cosines, 0)).sum())
    return float(np.log((total - num) / (num * (num - 1))))  # each vector with itself is exp(0)


def _several(vectors_ND: Floats) -> npt.NDArray[np.float64]:
    if len(vectors_ND) < 2:
        raise InputError(f"pairs need at least two vectors, not {len(vectors_ND)}")
    return unit(vectors_ND)
