from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gritkit.attention import plain_mask
from gritkit.batch import Batch, Reading, pack, pack_readings
from gritkit.config import EmbeddingConfig
from gritkit.data import PackedBatch
from gritkit.embedding import batch_plan
from gritkit.plan import Plan
from gritkit.tokens import sequence
from gritkit.train.figures import Figures, GradientHalves, ModelSize, matmul_rate, step_flops
from gritkit.train.step import StepLosses
from gritkit.train.trainer import size_of
from gritkit.train.world import World
from tests.models import grit_model


def text(length: int, targets: int = 0) -> Any:
    return sequence(list(range(2, 2 + length)), pool=True, loss=[i >= length - targets for i in range(length)])


@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.sampled_from([None, 1, 3, 7, 50]), st.booleans())
def test_pairs_are_those_of_the_mask(lengths: list[int], window: int | None, causal: bool) -> None:
    row = pack([text(length) for length in lengths])
    size = ModelSize(parameters=0, head=0, attention=1, windows=(window,))
    expected = plain_mask(Plan.of(lengths, causal=causal), window).sum().item()
    assert size.forward_flops(row, causal=causal) == 4 * expected


@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(2, 9), st.sampled_from([None, 2, 5, 50]))
def test_pairs_of_answers_count_what_they_read(documents: list[int], answer: int, window: int | None) -> None:
    row = pack_readings([Reading([text(n) for n in documents], text(answer, 1))], 0)
    size = ModelSize(parameters=0, head=0, attention=1, windows=(window, None))
    plan = batch_plan(row, EmbeddingConfig())
    expected = sum(plain_mask(plan, one).sum().item() for one in (window, None))
    assert size.forward_flops(row, causal=False) == 4 * expected


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_products_are_those_that_torch_counts(name: str) -> None:
    model = grit_model(name)
    row = pack([text(9, 3), text(20, 5)])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model("next_token", row)
    counted = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    products = sum(flops for op, flops in counted.items() if "mm" in op and "bmm" not in op)
    size = size_of(model)
    without_attention = ModelSize(size.parameters, size.head, 0, size.windows)
    norms = 2 * 29 * sum(p.numel() for p in model.parameters() if p.dim() == 1)  # counted as products, and tiny
    assert without_attention.forward_flops(row, causal=True) - norms == pytest.approx(products, rel=1e-6)


def test_of_a_mixture_only_the_experts_that_work_are_counted() -> None:
    model = grit_model("mixtral")
    experts = sum(p.numel() for name, p in model.named_parameters() if "experts" in name)
    everything = sum(p.numel() for p in model.parameters()) - 2 * model.lm.get_input_embeddings().weight.numel()
    assert size_of(model).parameters == everything - experts // 2


def batch_of(rows: list[Batch], budget: int) -> PackedBatch:
    return PackedBatch([], [], torch.zeros(0), None, rows, 1, sum(row.num_tokens for row in rows), budget)


def test_what_is_run_twice_is_the_hardwares() -> None:
    size = ModelSize(parameters=10, head=0, attention=0, windows=(None,))
    rows = [pack([text(4)]), pack([text(6)])]
    batch = batch_of(rows, 8)
    assert step_flops(size, batch, recompute=False) == (3 * 200, 3 * 200)
    assert step_flops(size, batch, recompute=True) == (3 * 200, 4 * 200)
    assert step_flops(size, batch, recompute=False, twice=rows[:1]) == (3 * 200, 3 * 200 + 80)


def test_figures_are_means_since_the_last_time() -> None:
    figures = Figures(World(), rate=1e9)
    batch = batch_of([pack([text(4)]), pack([text(6)])], 8)
    for value in (1.0, 3.0):
        losses = StepLosses(torch.tensor(0.0), torch.tensor(value), None, None, torch.tensor(0.25))
        figures.add(losses, batch, (300.0, 600.0))
    figures.note({"grad_cosine": torch.tensor(-0.5)})
    drained = figures.drain()
    assert drained["loss_contrastive"] == 2.0
    assert drained["masked_negatives"] == 0.25
    assert drained["grad_cosine"] == -0.5
    assert "loss_next_token" not in drained
    assert drained["row_fill"] == 10 / 16
    assert drained["tokens_per_second"] > 0
    assert drained["hardware_flops_utilisation"] == pytest.approx(2 * drained["flops_utilisation"])
    assert set(figures.drain()) == {
        "tokens_per_second",
        "row_fill",
        "flops_utilisation",
        "hardware_flops_utilisation",
    }


def test_gradient_halves_are_those_of_separate_passes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    unused = nn.Parameter(torch.ones(2))
    x = torch.randn(6, 5, dtype=torch.float64)

    def gradient(sign: float) -> torch.Tensor:
        model.zero_grad()
        (model(x) ** 2).mean().backward() if sign > 0 else model(-2 * x).sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    first, second = gradient(1.0), gradient(-1.0)
    model.zero_grad()
    halves = GradientHalves([*model.parameters(), frozen, unused])
    (model(x) ** 2).mean().backward()
    halves.after_first()
    model(-2 * x).sum().backward()
    halves.after_all()
    found = {name: value.item() for name, value in halves.figures.items()}
    cosine = torch.nn.functional.cosine_similarity(first, second, dim=0).item()
    assert found == pytest.approx(
        {
            "grad_norm_contrastive": first.norm().item(),
            "grad_norm_next_token": second.norm().item(),
            "grad_cosine": cosine,
        },
        rel=1e-12,
    )


def test_the_rate_of_this_machine_is_a_plausible_one() -> None:
    rate = matmul_rate(torch.device("cpu"), torch.float32)
    assert 1e8 < rate < 1e14
