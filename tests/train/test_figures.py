from __future__ import annotations

import contextlib
from types import SimpleNamespace
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
from gritkit.train import figures as figures_module
from gritkit.train.figures import Figures, GradientHalves, ModelSize, matmul_rate, step_flops
from gritkit.train.step import StepLosses
from gritkit.train.weights import size_of
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


def test_recomputing_leaves_out_the_output_layer() -> None:
    size = ModelSize(parameters=10, head=7, attention=0, windows=(None,))
    batch = batch_of([pack([text(4, 3)])], 8)
    forward = 2 * (10 * 4 + 7 * 3)
    assert step_flops(size, batch, recompute=True) == (3 * forward, 3 * forward + 2 * 10 * 4)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_a_step_costs_what_torch_counts(trained: bool, causal: bool) -> None:
    """Forward and backward, of weights that train and of frozen ones with gradients passing through, down to the first
    norm; attention is told apart, as torch counts masked pairs too."""
    model = grit_model("llama")
    products = [p for p in model.parameters() if p.dim() > 1]
    for parameter in products:
        parameter.requires_grad_(trained)
    row = pack([text(9, 3), text(20, 5)])
    with FlopCounterMode(display=False) as counter:
        (model("next_token", row) if causal else model("embed", row).sum()).backward()
    counted = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    size, norms = size_of(model), sum(p.numel() for p in model.parameters() if p.dim() == 1)
    weights, head = size.parameters - norms, size.head if causal else 0
    told = ModelSize(weights, head, 0, size.windows, 0 if trained else weights, 0 if trained else head)
    batch = batch_of([row], 32) if causal else PackedBatch([row], [], torch.zeros(0), None, [], 0, 29, 32)
    in_place = 2 * head * 8 if trained else 0  # the output layer's own gradient: addmm_, which torch does not count
    expected = sum(flops for op, flops in counted.items() if "bmm" not in op) + in_place
    assert step_flops(told, batch, recompute=False)[0] == expected
    if not causal:
        pairs = ModelSize(0, 0, size.attention, size.windows)
        assert step_flops(pairs, batch, recompute=False)[0] == counted["aten.bmm"]


def test_causal_texts_see_half() -> None:
    row = pack([text(5), text(8)])
    size = ModelSize(parameters=0, head=0, attention=1, windows=(None,), causal_texts=True)
    assert size.forward_flops(row, causal=False) == 4 * (15 + 36)


def test_time_that_is_paused_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(figures_module, "time", SimpleNamespace(perf_counter=lambda: now))
    figures = Figures(World(), rate=1e3)
    figures.add(StepLosses(torch.tensor(0.0), None, None), batch_of([pack([text(6)])], 8), (300.0, 600.0))
    now = 102.0
    with contextlib.suppress(ValueError), figures.paused():
        now = 150.0
        raise ValueError("also after an error")
    now = 151.0
    drained = figures.drain()
    assert drained["tokens_per_second"] == pytest.approx(6 / 3)
    assert drained["flops_utilisation"] == pytest.approx(0.1)
    now = 153.0
    assert figures.drain()["tokens_per_second"] == 0


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


def halves_of(first: list[float], second: list[float], dtype: torch.dtype) -> dict[str, float]:
    """The figures of gradients that are given."""
    parameter = nn.Parameter(torch.zeros(len(first), dtype=dtype))
    halves = GradientHalves([parameter])
    parameter.grad = torch.tensor(first, dtype=dtype)
    halves.after_first()
    parameter.grad += torch.tensor(second, dtype=dtype)
    halves.after_all()
    return {name: value.item() for name, value in halves.figures.items()}


def test_small_gradients_have_a_cosine_too() -> None:
    found = halves_of([3e-15, 4e-15], [0.0, 2e-15], torch.float32)
    assert found["grad_cosine"] == pytest.approx(0.8, rel=1e-4)
    assert found["grad_norm_contrastive"] == pytest.approx(5e-15, rel=1e-4)


def test_halves_of_16_bits_are_subtracted_in_32() -> None:
    first, second = [-0.56640625] * 4, [1.5703125] * 4  # their sum rounds to 1, less the first is no 8-bit number
    whole = torch.tensor(first, dtype=torch.bfloat16) + torch.tensor(second, dtype=torch.bfloat16)
    found = halves_of(first, second, torch.bfloat16)
    expected = (whole.double() - torch.tensor(first, dtype=torch.float64)).norm().item()
    assert found["grad_norm_next_token"] == pytest.approx(expected, rel=1e-6)
    assert found["grad_cosine"] == pytest.approx(-1)


def test_a_half_without_gradients_pulls_nowhere() -> None:
    assert halves_of([3.0, 4.0], [0.0, 0.0], torch.float32) == {
        "grad_norm_contrastive": 5.0,
        "grad_norm_next_token": 0.0,
        "grad_cosine": 0.0,
    }


def test_a_machine_that_is_busy_still_has_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time for measuring may be over before the first product: a rate of 0 would be divided by."""
    monkeypatch.setattr(figures_module, "_MEASURED_S", -1.0)
    assert matmul_rate(torch.device("cpu"), torch.float32) > 0


def test_the_rate_of_this_machine_is_a_plausible_one_and_costs_no_random_numbers() -> None:
    before = torch.get_rng_state()
    rate = matmul_rate(torch.device("cpu"), torch.float32)
    assert 1e8 < rate < 1e14
    assert torch.equal(torch.get_rng_state(), before)
