"""Whether a difference is more than chance: paired bootstrap, sign-flip test, Holm's correction.

Shapes: N examples, R resamples. This module knows nothing about outcomes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEVEL = 0.95
LEAST_TASKS = 5
"""Below which resampling tasks says nothing."""
_FEW = 1000
"""Distinct differences up to which resamples are drawn as counts of each."""
_NUMBERS = 1 << 22
"""Of drawn places in memory at a time."""


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, its confidence interval, and how often chance gives as much."""

    mean: float
    low: float
    high: float
    p: float


def paired(first: Sequence[float], second: Sequence[float], *, resamples: int = 10_000, seed: int = 0) -> Difference:
    """``second`` minus ``first``, example by example. Raises ValueError unless both are as long, and longer than 1."""
    differences_N = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    if len(differences_N) < 2:
        raise ValueError(f"{len(differences_N)} pairs: a bootstrap needs at least 2")
    rng = np.random.default_rng(seed)
    low, high = interval(bootstrap_means(differences_N, resamples, rng))
    return Difference(float(differences_N.mean()), low, high, sign_flip_p(differences_N, resamples, rng))


def bootstrap_means(values_N: Array, resamples: int, rng: np.random.Generator) -> Array:
    """The means of R samples of N values, drawn with replacement [R] (Efron and Tibshirani 1993, chapter 6).

    Of few distinct values only the counts are drawn, which are multinomial: the same distribution in less time.
    """
    distinct, counts = np.unique(values_N, return_counts=True)
    num = len(values_N)
    if len(distinct) <= min(_FEW, num // 2):
        drawn = rng.multinomial(num, counts / num, size=resamples) @ distinct / num
        return np.asarray(drawn, dtype=np.float64)
    means_R = np.empty(resamples)
    block = max(1, _NUMBERS // num)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        means_R[start : start + rows] = values_N[rng.integers(0, num, size=(rows, num))].mean(axis=1)
    return means_R


def interval(means_R: Array) -> tuple[float, float]:
    """The percentile interval: what the middle 95 % of the resamples lie in."""
    low, high = np.quantile(means_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def sign_flip_p(values_N: Array, resamples: int, rng: np.random.Generator) -> float:
    """The share of sign flips, the given one among them, whose sum is as far from 0 as the given one's.

    p = (1 + #{r : |sum_n s_rn d_n| >= |sum_n d_n|}) / (1 + R), each s_rn = +1 or -1 with equal chance: the permutation
    test for pairs under "neither is better" (Good 2005; the +1 after Phipson and Smyth 2010). Never below 1 / (1 + R).
    """
    sizes, counts = np.unique(np.abs(values_N), return_counts=True)
    if sizes[-1] == 0:
        return 1.0
    seen = abs(float(values_N.sum())) * (1 - 1e-12)
    hits, block = 0, max(1, _NUMBERS // len(sizes))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        ups = rng.binomial(counts, 0.5, size=(rows, len(sizes)))  # of equal sizes, how many keep their sign
        hits += int((np.abs((2 * ups - counts) @ sizes) >= seen).sum())
    return (1 + hits) / (1 + resamples)


def holm(ps: Sequence[float]) -> list[float]:
    """p values for which the chance that any of them errs stays below the level (Holm 1979).

    The k-th smallest of m, times m - k + 1, and never below the one before; at most 1.
    """
    adjusted = [1.0] * len(ps)
    least = 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        least = max(least, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = least
    return adjusted
