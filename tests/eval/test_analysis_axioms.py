from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from gritkit.errors import InputError
from gritkit_eval.analysis import axioms
from gritkit_eval.analysis.axioms import angles, asymmetry, cosine_distances, triangle_violations


def cloud(num: int = 30, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.5, 1, size=(num, 5))


def brute(distances: np.ndarray) -> list[float]:
    """What every ordered triple exceeds the inequality by, the worst of each set of three."""
    found = []
    for three in itertools.combinations(range(len(distances)), 3):
        excess = [distances[i, k] - distances[i, j] - distances[j, k] for i, j, k in itertools.permutations(three)]
        found.append(max(excess))
    return found


def test_roles_that_are_one_are_symmetric() -> None:
    found = asymmetry(cloud(), 2 * cloud())
    assert (found.mean, found.largest, found.own) == pytest.approx((0, 0, 1), abs=1e-12)


def test_asymmetry_is_that_of_every_pair() -> None:
    queries, passages = cloud(seed=1), cloud(seed=2)

    def s(a: int, b: int) -> float:
        return float(queries[a] @ passages[b] / np.linalg.norm(queries[a]) / np.linalg.norm(passages[b]))

    pairs = list(itertools.combinations(range(30), 2))
    differences = [abs(s(a, b) - s(b, a)) for a, b in pairs]
    found = asymmetry(queries, passages)
    assert found.mean == pytest.approx(np.mean(differences))
    assert found.largest == pytest.approx(max(differences))
    assert found.relative == pytest.approx(
        np.mean(differences) / np.std([s(a, b) for one in pairs for a, b in (one, one[::-1])])
    )
    assert found.own == pytest.approx(np.mean([s(a, a) for a in range(30)]))
    assert math.isnan(asymmetry(np.ones((3, 2)), np.ones((3, 2))).relative)
    with pytest.raises(InputError, match="30 and 29"):
        asymmetry(queries, passages[1:])


def test_violations_are_those_of_every_triple() -> None:
    distances = cosine_distances(cloud())
    expected = np.array(brute(distances))
    found = triangle_violations(distances)
    assert found.share == pytest.approx((expected > 1e-6).mean())
    assert found.size == pytest.approx(expected[expected > 1e-6].mean())
    assert found.largest == pytest.approx(expected.max())
    assert found.share > 0


def test_an_angle_violates_nothing_not_even_among_copies_and_opposites() -> None:
    vectors = np.concatenate([cloud(), cloud(), -cloud(), cloud() + 1e-9])
    found = triangle_violations(angles(vectors))
    assert (found.share, found.size, found.largest) == (0, 0, 0)


def test_random_triples_estimate_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    distances = cosine_distances(cloud(60))
    whole = triangle_violations(distances)
    monkeypatch.setattr(axioms, "_ALL", 0)
    some = triangle_violations(distances, triples=20_000, seed=3)
    assert some.share == pytest.approx(whole.share, abs=0.02)
    assert some != triangle_violations(distances, triples=20_000, seed=4)


def test_three_are_needed() -> None:
    with pytest.raises(InputError, match="three vectors, not 2"):
        triangle_violations(np.zeros((2, 2)))
