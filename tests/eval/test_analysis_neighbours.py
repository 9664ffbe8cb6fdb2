from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import skew
from sklearn.neighbors import NearestNeighbors

from gritkit.errors import InputError
from gritkit_eval.analysis.geometry import unit
from gritkit_eval.analysis.neighbours import occurrences, skewness


def test_occurrences_are_those_of_scikit_learn() -> None:
    vectors = np.random.default_rng(0).normal(0.3, 1, size=(80, 6))
    places = NearestNeighbors(n_neighbors=6, metric="cosine", algorithm="brute").fit(vectors).kneighbors()[1][:, :5]
    assert np.array_equal(occurrences(vectors, 5), np.bincount(places.ravel(), minlength=80))


def test_the_mean_is_k_even_among_copies() -> None:
    copies = np.ones((7, 3))
    counts = occurrences(copies, 2)
    assert counts.sum() == 14
    mixed = np.concatenate([copies, unit(np.random.default_rng(1).normal(size=(5, 3)))])
    assert occurrences(mixed, 3).sum() == 36


def test_a_hub_is_found() -> None:
    ring = np.array([[1.0, 0, 1], [0, 1, 1], [-1, 0, 1], [0, -1, 1]])  # at right angles about the axis, the hub
    assert occurrences(np.concatenate([ring, [[0, 0, 1]]]), 1).tolist() == [1, 0, 0, 0, 4]
    assert math.isnan(skewness(occurrences(ring, 3)))


def test_skewness_is_that_of_scipy() -> None:
    values = np.random.default_rng(0).poisson(3, 50)
    assert skewness(values) == pytest.approx(skew(values), rel=1e-12)
    assert math.isnan(skewness(np.array([2, 2, 2])))


def test_k_is_bounded() -> None:
    for k in (0, 5):
        with pytest.raises(InputError, match=f"k={k} must be between 1 and 4"):
            occurrences(np.eye(5), k)
