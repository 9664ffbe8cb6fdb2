from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gritkit.config import Pooling
from gritkit.pooling import pool, unit


def naive(hidden: Tensor, lengths: list[int], mask: Tensor, pooling: Pooling) -> Tensor:
    vectors, start = [], 0
    for length in lengths:
        rows, inside = hidden[start : start + length], mask[start : start + length]
        start += length
        if pooling in ("last", "cls"):
            vectors.append(rows[-1 if pooling == "last" else 0])
            continue
        kept = [row for row, keep in zip(rows, inside, strict=True) if keep]
        weights = [i + 1.0 if pooling == "weighted_mean" else 1.0 for i in range(len(kept))]
        vectors.append(sum(w * row for w, row in zip(weights, kept, strict=True)) / sum(weights))
    return torch.stack(vectors)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    pooling=st.sampled_from(["mean", "weighted_mean", "last", "cls"]),
    seed=st.integers(0, 1000),
)
def test_pooling_is_the_loop_over_masked_in_tokens(lengths: list[int], pooling: Pooling, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(sum(lengths), 5, dtype=torch.float64, generator=generator)
    mask = torch.rand(sum(lengths), generator=generator) < 0.6
    mask[torch.tensor(lengths).cumsum(0) - 1] = True
    found = pool(hidden, torch.tensor(lengths), mask, pooling)
    torch.testing.assert_close(found, naive(hidden, lengths, mask, pooling), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("pooling", ["mean", "weighted_mean"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_is_masked_out_does_not_leak(pooling: Pooling, poison: float) -> None:
    hidden = torch.tensor([[poison], [2.0], [4.0], [poison], [6.0]], requires_grad=True)
    mask = torch.tensor([False, True, True, False, True])
    vectors = pool(hidden, torch.tensor([3, 2]), mask, pooling)
    expected = [3.0, 6.0] if pooling == "mean" else [(2.0 + 2 * 4.0) / 3, 6.0]
    assert vectors.flatten().tolist() == pytest.approx(expected)
    vectors.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad[~mask].tolist() == [[0.0], [0.0]]


def test_half_precision_is_summed_in_single() -> None:
    hidden = torch.ones(5000, 1, dtype=torch.bfloat16)
    vector = pool(hidden, torch.tensor([5000]), torch.ones(5000, dtype=torch.bool), "weighted_mean")
    assert vector.dtype == torch.float32
    assert vector.item() == pytest.approx(1.0, abs=1e-6)


def test_the_zero_vector_stays_zero() -> None:
    assert unit(torch.tensor([[0.0, 0.0], [3.0, 4.0]])).tolist() == [
        [0.0, 0.0],
        [pytest.approx(0.6), pytest.approx(0.8)],
    ]
