from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.distance import cosine, pdist
from scipy.stats import entropy

from gritkit.errors import InputError
from gritkit_eval.analysis.geometry import (
    alignment,
    effective_rank,
    mean_cosine,
    partition_isotropy,
    uniformity,
    unit,
)


def cloud(num: int = 60, dim: int = 7, seed: int = 0, shift: float = 0.5) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, size=(num, dim))


def test_mean_cosine_is_that_of_all_pairs() -> None:
    vectors = cloud()
    pairs = [1 - cosine(vectors[i], vectors[j]) for i in range(60) for j in range(i)]
    assert mean_cosine(vectors) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert mean_cosine(np.ones((5, 3))) == pytest.approx(1)
    assert mean_cosine(np.array([[1.0, 0], [-1, 0]])) == pytest.approx(-1)


def test_uniformity_is_that_of_all_pairs_in_blocks_too() -> None:
    vectors = cloud(1500, 5)  # more than one block
    expected = np.log(np.exp(-2 * pdist(unit(vectors), "sqeuclidean")).mean())
    assert uniformity(vectors) == pytest.approx(expected, abs=1e-9)
    assert uniformity(np.ones((4, 3))) == pytest.approx(0)
    assert uniformity(np.array([[1.0, 0], [-1, 0]])) == pytest.approx(-8)


def test_alignment() -> None:
    first, second = cloud(seed=1), cloud(seed=2)
    expected = np.mean([2 * cosine(a, b) for a, b in zip(first, second, strict=True)])
    assert alignment(first, second) == pytest.approx(expected, abs=1e-12)
    assert alignment(first, 3 * first) == pytest.approx(0, abs=1e-12)
    assert alignment(first, -first) == pytest.approx(4)
    with pytest.raises(InputError, match="one shape"):
        alignment(first, second[:3])


def test_effective_rank_is_the_entropy_of_the_covariance() -> None:
    vectors = cloud()
    values = np.linalg.eigvalsh(np.cov(unit(vectors), rowvar=False))
    assert effective_rank(vectors) == pytest.approx(np.exp(entropy(values)), rel=1e-9)
    axes = np.concatenate([np.eye(4), -np.eye(4)])
    assert effective_rank(axes) == pytest.approx(4)
    assert effective_rank(np.array([[1.0, 0, 0], [0, 1, 0]])) == pytest.approx(1)
    assert math.isnan(effective_rank(np.full((9, 3), 0.3)))


def test_isotropy_of_axes_is_one_and_of_a_point_that_of_its_exponentials() -> None:
    axes = np.concatenate([np.eye(5), -np.eye(5)])
    assert partition_isotropy(axes) == pytest.approx(1)
    assert partition_isotropy(np.tile([[0.6, 0.8]], (10, 1))) == pytest.approx(math.exp(-2))
    vectors = unit(cloud(shift=2))
    sums = [np.exp(sign * vectors @ c).sum() for c in np.linalg.eig(vectors.T @ vectors)[1].T for sign in (1, -1)]
    assert partition_isotropy(vectors) == pytest.approx(min(sums) / max(sums))
    assert partition_isotropy(vectors) < partition_isotropy(cloud(shift=0))


@pytest.mark.parametrize("function", [mean_cosine, uniformity, effective_rank, partition_isotropy])
def test_what_has_no_direction_is_named(function) -> None:  # type: ignore[no-untyped-def]
    vectors = cloud(4, 3)
    for wrong in (0.0, math.nan, math.inf):
        vectors[2] = wrong
        with pytest.raises(InputError, match="vector 2 has no direction"):
            function(vectors)
    with pytest.raises(InputError, match=r"matrix|two vectors"):
        function(np.empty((0, 3)))


def test_pairs_need_two() -> None:
    with pytest.raises(InputError, match="at least two vectors, not 1"):
        mean_cosine(cloud(1))
