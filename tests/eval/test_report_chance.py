from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats

from gritkit_eval.report.chance import bootstrap_means, holm, interval, paired, sign_flip_p


def material(num: int, *, binary: bool) -> tuple[list[float], list[float]]:
    rng = np.random.default_rng(3)
    one, other = rng.random(num), rng.random(num) + 0.1
    return ((one > 0.5) * 1.0).tolist() if binary else one.tolist(), ((other > 0.5) * 1.0 if binary else other).tolist()


@pytest.mark.parametrize("binary", [True, False])
def test_intervals_are_scipys(binary: bool) -> None:
    """Two draws of 10,000 resamples: equal to what such draws differ by (some hundredths of the interval)."""
    first, second = material(200, binary=binary)
    ours = paired(first, second, seed=1)
    differences = np.subtract(second, first)
    theirs = scipy.stats.bootstrap((differences,), np.mean, n_resamples=10_000, method="percentile", rng=2)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours.mean == pytest.approx(differences.mean(), abs=1e-12)
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.04 * width)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.04 * width)


@pytest.mark.parametrize("binary", [True, False])
def test_p_values_are_scipys(binary: bool) -> None:
    first, second = material(60, binary=binary)
    theirs = scipy.stats.permutation_test(
        (second, first), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=20_000, rng=2,
    )  # fmt: skip
    assert paired(first, second, seed=1).p == pytest.approx(theirs.pvalue, abs=0.015)


def test_p_values_are_those_of_all_sign_flips() -> None:
    """Closed form: all 2^n flips of a few differences."""
    values = np.array([0.5, -0.25, 0.5, 1.0, 0.0, -0.125])
    flips = [abs(np.dot(signs, values)) for signs in itertools.product((-1, 1), repeat=len(values))]
    exact = np.mean(np.array(flips) >= abs(values.sum()) - 1e-12)
    assert sign_flip_p(values, 200_000, np.random.default_rng(0)) == pytest.approx(exact, abs=0.005)


def test_means_of_few_distinct_values_have_the_same_spread() -> None:
    """Their variance is s^2 / N in closed form, drawn as counts or one by one."""
    values = np.array([1.0] * 30 + [0.0] * 60 + [-1.0] * 10)
    drawn = bootstrap_means(values, 40_000, np.random.default_rng(0))
    many = bootstrap_means(values + np.linspace(0, 1e-9, 100), 40_000, np.random.default_rng(0))
    for means in (drawn, many):
        assert means.mean() == pytest.approx(values.mean(), abs=2e-3)
        assert means.std() == pytest.approx(values.std() / 10, rel=0.02)
    assert interval(np.arange(1001.0)) == pytest.approx((25.0, 975.0))


def test_large_files_are_drawn_in_blocks() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=30_000)
    means = bootstrap_means(values, 300, rng)
    assert means.std() == pytest.approx(1 / np.sqrt(30_000), rel=0.2)


def test_what_chance_cannot_say() -> None:
    same = paired([0.5, 0.25], [0.5, 0.25])
    assert (same.mean, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    always = paired([0.0] * 50, [1.0] * 50)
    assert (always.low, always.high) == (1.0, 1.0)
    assert always.p == pytest.approx(1 / 10_001)
    with pytest.raises(ValueError, match="1 pairs"):
        paired([1.0], [2.0])
    assert paired([0.1, 0.2, 0.4], [0.3, 0.1, 0.9], seed=5) == paired([0.1, 0.2, 0.4], [0.3, 0.1, 0.9], seed=5)


def test_holm_by_hand() -> None:
    """p of 0.01, 0.04, 0.03, 0.005 (Holm 1979): times 3, 1, 2, 4, never falling."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
