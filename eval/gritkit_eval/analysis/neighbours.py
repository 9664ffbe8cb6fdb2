"""Hubness: whether a few vectors are near to many others, and many near to none.

This module knows nothing about texts or models.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gritkit.errors import InputError
from gritkit.search import top_k
from gritkit_eval.analysis.geometry import unit

Floats = npt.NDArray[np.floating[Any]]


def occurrences(vectors_ND: Floats, k: int) -> npt.NDArray[np.int64]:
    """N_k [N]: among how many other vectors' ``k`` nearest (by cosine) each vector is.

    Radovanovic et al. 2010 ("Hubs in space", JMLR 11). Their mean is k. Of equally near ones the first count.
    """
    vectors = unit(vectors_ND)
    if not 1 <= k < len(vectors):
        raise InputError(f"k={k} must be between 1 and {len(vectors) - 1}, the number of other vectors")
    _, indices_NK = top_k(vectors, vectors, k + 1)
    others = indices_NK != np.arange(len(vectors))[:, None]
    # With more than k copies of a vector it may be missing among its own nearest: then the last of them goes.
    others[others.all(axis=1), -1] = False
    return np.bincount(indices_NK[others], minlength=len(vectors))


def skewness(counts: npt.NDArray[Any]) -> float:
    """mean of (x - mean)^3 / (mean of (x - mean)^2)^1.5; NaN where all are equal. Of N_k it is the hubness S_Nk."""
    centred = np.asarray(counts, np.float64) - np.mean(counts)
    spread = float((centred**2).mean())
    return float((centred**3).mean()) / spread**1.5 if spread else float("nan")
