from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import entropy

from gritkit.errors import InputError
from gritkit_eval.analysis.diversity import cluster_entropy, distinct_n, nearest_cosines, similar_share, vendi_score
from gritkit_eval.analysis.geometry import unit
from gritkit_eval.analysis.texts import sampled


def cloud(num: int = 50, dim: int = 8) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(num, dim))


def test_distinct_n() -> None:
    texts = [["a", "b", "a"], ["a", "b"], []]
    assert distinct_n(texts, 1) == 2 / 5
    assert distinct_n(texts, 2) == 2 / 3  # ab ba ab
    assert math.isnan(distinct_n(texts, 4))


def test_similar_share_is_that_of_all_pairs() -> None:
    draw = np.random.default_rng(0)
    texts = [list("abcdefghij"[: draw.integers(3, 10)]) for _ in range(12)] + [list("xyz"), list("xy"), list("xy")]

    def grams(text: list[str]) -> set[tuple[str, ...]]:
        return {tuple(text[i : i + 3]) for i in range(max(1, len(text) - 2))}

    sets = [grams(text) for text in texts]
    for limit in (0.5, 0.8, 1.0):
        alike = sum(
            any(len(a & b) / len(a | b) >= limit for j, b in enumerate(sets) if j != i) for i, a in enumerate(sets)
        )
        assert similar_share(texts, jaccard=limit) == alike / len(texts)
    assert math.isnan(similar_share([]))


def test_vendi_score_is_that_of_the_kernel() -> None:
    vectors = cloud()
    values = np.linalg.eigvalsh(unit(vectors) @ unit(vectors).T / len(vectors))
    assert vendi_score(vectors) == pytest.approx(np.exp(entropy(values.clip(0))), rel=1e-8)
    assert vendi_score(np.eye(6)) == pytest.approx(6)
    assert vendi_score(np.ones((6, 3))) == pytest.approx(1)
    assert vendi_score(np.repeat(np.eye(3), 4, axis=0)) == pytest.approx(3)  # copies add nothing
    with pytest.raises(InputError, match="at least one"):
        vendi_score(np.empty((0, 3)))


def test_nearest_cosines_leave_the_vector_itself_out() -> None:
    vectors = cloud()
    cosines = unit(vectors) @ unit(vectors).T - 9 * np.eye(len(vectors))
    assert np.allclose(nearest_cosines(vectors), cosines.max(axis=1), atol=1e-6)
    assert np.allclose(nearest_cosines(np.ones((4, 3))), 1)
    with pytest.raises(InputError, match="at least two"):
        nearest_cosines(vectors[:1])


def test_cluster_entropy_knows_even_sizes_from_one_heap() -> None:
    draw = np.random.default_rng(0)
    even = np.concatenate([np.eye(4)[i] + draw.normal(0, 0.01, size=(10, 4)) for i in range(4)])
    assert cluster_entropy(even, clusters=4, seed=0) == pytest.approx(1)
    heap = np.concatenate([even[:1].repeat(37, axis=0), even[10:11], even[20:21], even[30:31]])
    shares = np.array([37, 1, 1, 1]) / 40
    assert cluster_entropy(heap, clusters=4, seed=0) == pytest.approx(entropy(shares) / math.log(4))
    assert cluster_entropy(np.ones((5, 2)), clusters=4, seed=0) == 0


def test_every_item_is_as_likely_to_be_sampled() -> None:
    counts = np.zeros(10)
    for seed in range(2000):
        kept = sampled(range(10), 3, seed)
        assert kept == sorted(kept)
        counts[kept] += 1
    assert counts / 2000 == pytest.approx(np.full(10, 0.3), abs=0.04)
    assert sampled(range(2), 3, 0) == [0, 1]
