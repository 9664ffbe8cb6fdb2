from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gritkit import attention
from gritkit.attention import attend, attend_plainly, plain_mask
from gritkit.errors import InputError, UnsupportedModelError
from gritkit.kv.slots import SlotStore
from gritkit.plan import Plan, Segment, WindowRule

RULES = ("exclusive", "inclusive", "full")
EXACT = {"atol": 1e-12, "rtol": 1e-12}


class Layer(torch.nn.Module):
    layer_idx = 0


def heads(num_tokens: int, num_heads: int = 4, num_groups: int = 2, size: int = 8, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(1, h, num_tokens, size, dtype=torch.float64, generator=generator)
        for h in (num_heads, num_groups, num_groups)
    ]


def run(plan: Plan, qkv: list[Tensor], **options: object) -> Tensor:
    """Through the registered function; back in the layout of the plain twin."""
    out, weights = attend(Layer(), *qkv, None, plan=plan, **options)  # type: ignore[arg-type]
    assert weights is None
    return out.transpose(1, 2)


def varlen_twin(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int,
    scale: float | None, window: tuple[int, int],
) -> Tensor:  # fmt: skip
    """flash-attn's documented contract, one segment and one query at a time: causal and windows at the bottom right."""
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert max_q == int(cu_q.diff().max())
    assert max_k == int(cu_k.diff().max())
    assert int(cu_q[-1]) == len(q)
    assert int(cu_k[-1]) == len(k) == len(v)
    out = torch.empty(*q.shape[:2], v.shape[2], dtype=q.dtype)
    groups = q.shape[1] // k.shape[1]
    for (q0, q1), (k0, k1) in zip(pairwise(cu_q.tolist()), pairwise(cu_k.tolist()), strict=True):
        num_q, num_k = q1 - q0, k1 - k0
        for i in range(num_q):
            at = i + num_k - num_q
            low = 0 if window[0] < 0 else max(0, at - window[0])
            high = num_k - 1 if window[1] < 0 else min(num_k - 1, at + window[1])
            for h in range(q.shape[1]):
                keys, values = (x[k0 + low : k0 + high + 1, h // groups] for x in (k, v))
                scores = keys @ q[q0 + i, h] * (q.shape[2] ** -0.5 if scale is None else scale)
                out[q0 + i, h] = scores.softmax(0) @ values
    return out


@st.composite
def segment_lists(draw: st.DrawFn) -> tuple[Segment, ...]:
    """Rows of equal and unequal segments, both kinds of attention, some reading what stands before them."""
    segments: list[Segment] = []
    at = 0
    for _ in range(draw(st.integers(1, 5))):
        length, causal = draw(st.integers(1, 6)), draw(st.booleans())
        for _ in range(draw(st.integers(1, 3))):
            reads = ()
            if at and draw(st.integers(0, 2)) == 0:
                cuts = sorted(draw(st.sets(st.integers(0, at), min_size=2, max_size=4)))
                reads = tuple(zip(cuts[::2], cuts[1::2], strict=False))
                reads = tuple(draw(st.permutations(reads)))
            segments.append(Segment(at, at + length, causal, reads))
            at += length
    return tuple(segments)


plans = st.builds(Plan, segment_lists(), st.sampled_from(RULES))
windows = st.sampled_from([None, 1, 2, 3, 7, 100])
groupings = st.sampled_from([(4, 4), (4, 2), (3, 1)])


# -- the plain twin against forms written by hand ------------------------------------------------------------------


def test_the_plain_twin_of_equal_scores_is_the_mean_of_what_is_seen() -> None:
    plan = Plan((Segment(0, 3, False), Segment(3, 5, True), Segment(5, 7, True, reads=((0, 3),))))
    value = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0], dtype=torch.float64).reshape(1, 1, 7, 1)
    zeros = torch.zeros_like(value)
    out = attend_plainly(plan, zeros, zeros, value).flatten()
    mean = (1 + 2 + 4) / 3
    expected = [mean, mean, mean, 8.0, 12.0, (1 + 2 + 4 + 32) / 4, (1 + 2 + 4 + 32 + 64) / 5]
    torch.testing.assert_close(out, torch.tensor(expected, dtype=torch.float64))


def test_the_plain_twin_weighs_by_the_scaled_exponent_of_the_score() -> None:
    plan = Plan.of([2], causal=True)
    query = torch.tensor([0.0, 2.0], dtype=torch.float64).reshape(1, 1, 2, 1)
    key = torch.tensor([1.0, 3.0], dtype=torch.float64).reshape(1, 1, 2, 1)
    value = torch.tensor([5.0, 7.0], dtype=torch.float64).reshape(1, 1, 2, 1)
    out = attend_plainly(plan, query, key, value, scaling=0.5).flatten()
    weight = math.exp(3.0) / (math.exp(1.0) + math.exp(3.0))
    assert out.tolist() == pytest.approx([5.0, 5.0 + 2.0 * weight], rel=1e-15)


@pytest.mark.parametrize(
    ("causal", "rule", "seen_by_3"),
    [
        (True, "exclusive", [2, 3]),
        (True, "inclusive", [2, 3]),
        (True, "full", [2, 3]),
        (False, "exclusive", [2, 3, 4]),
        (False, "inclusive", [1, 2, 3, 4, 5]),
        (False, "full", [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_a_window_of_two_by_each_rule(causal: bool, rule: WindowRule, seen_by_3: list[int]) -> None:
    mask = plain_mask(Plan.of([7], causal=causal, window_rule=rule), 2)
    assert mask[3].nonzero().flatten().tolist() == seen_by_3


def test_windows_count_in_the_joined_order_of_what_is_read() -> None:
    """What is read stands right before, however far away it is in the row."""
    plan = Plan((Segment(0, 3, False), Segment(3, 6, False), Segment(6, 8, True, reads=((0, 3),))))
    mask = plain_mask(plan, 3)
    assert mask[6].nonzero().flatten().tolist() == [1, 2, 6]
    assert mask[7].nonzero().flatten().tolist() == [2, 6, 7]


# -- every kernel against the plain twin -----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(plans, windows, groupings)
def test_segment_kernel(plan: Plan, window: int | None, grouping: tuple[int, int]) -> None:
    qkv = heads(plan.length, *grouping)
    torch.testing.assert_close(
        run(plan, qkv, sliding_window=window), attend_plainly(plan, *qkv, sliding_window=window), **EXACT
    )


@settings(max_examples=40, deadline=None)
@given(plans, windows, groupings)
def test_short_segments_that_train_on_a_cpu(plan: Plan, window: int | None, grouping: tuple[int, int]) -> None:
    qkv = [x.requires_grad_() for x in heads(plan.length, *grouping)]
    out = run(plan, qkv, sliding_window=window, scaling=0.3)
    torch.testing.assert_close(out, attend_plainly(plan, *qkv, 0.3, sliding_window=window), **EXACT)


@settings(max_examples=40, deadline=None)
@given(plans, windows, groupings)
def test_varlen_kernel(plan: Plan, window: int | None, grouping: tuple[int, int]) -> None:
    qkv = heads(plan.length, *grouping, size=4)
    out = attention._attend_varlen(varlen_twin, plan, *qkv, 0.3, window)
    torch.testing.assert_close(out, attend_plainly(plan, *qkv, 0.3, window), **EXACT)


@pytest.mark.parametrize("device_kernel", ["short", "fused", "varlen"])
def test_gradients_of_the_kernels(device_kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if device_kernel == "fused":
        monkeypatch.setattr(attention, "_SHORT", 0)
    segments = (Segment(0, 4, False), Segment(4, 8, False), Segment(8, 11, True, reads=((4, 8), (0, 4))))
    grads = []
    for kind in (device_kernel, "plain"):
        plan = Plan(segments)
        qkv = [x.requires_grad_() for x in heads(11)]
        if kind == "plain":
            out = attend_plainly(plan, *qkv, sliding_window=3)
        elif kind == "varlen":
            out = attention._attend_varlen(varlen_twin, plan, *qkv, None, 3)
        else:
            out = run(plan, qkv, sliding_window=3)
        (out.sin() * torch.arange(11.0)[:, None]).sum().backward()
        grads.append([x.grad for x in qkv])
    torch.testing.assert_close(grads[0], grads[1], **EXACT)


def test_window_cap_narrows_windows_and_adds_none() -> None:
    qkv = heads(9)
    for causal in (True, False):
        capped, small, free = (
            run(Plan.of([9], causal=causal, window_cap=cap), qkv, sliding_window=window)
            for cap, window in ((2, 100), (None, 2), (2, None))
        )
        torch.testing.assert_close(capped, small, **EXACT)
        torch.testing.assert_close(free, run(Plan.of([9], causal=causal), qkv), **EXACT)


def joined(store: SlotStore, plan: Plan, qkv: list[Tensor], window: int | None, layer: int = 0) -> Tensor:
    """What attention over slots must give: each segment alone, its slot's keys read as documents before it."""
    outputs = []
    for segment in plan.segments:
        query, key, value = (x[:, :, segment.start : segment.end] for x in qkv)
        past, n = segment.past, segment.length
        if segment.slot is not None and past:
            old_key, old_value = store.get(layer, segment.slot, 0, past)
            key, value = torch.cat([old_key, key], 2), torch.cat([old_value, value], 2)
        # queries of the past are computed too and thrown away: the twin knows no slots
        padded = torch.cat([query.new_zeros(1, query.shape[1], past, query.shape[3]), query], 2)
        alone = Plan((Segment(0, past + n, segment.causal),), plan.window_rule)
        outputs.append(attend_plainly(alone, padded, key, value, sliding_window=window)[:, :, past:])
    return torch.cat(outputs, 2)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 4), st.booleans()), min_size=1, max_size=5),
    window=windows,
    grouping=groupings,
    order=st.randoms(use_true_random=False),
)
def test_slot_kernel(
    rows: list[tuple[int, int, bool]], window: int | None, grouping: tuple[int, int], order: object
) -> None:
    """Rows of any past and any length, some without a slot, at once."""
    store = SlotStore(num_slots=6, max_length=16)
    slots = list(range(6))
    order.shuffle(slots)  # type: ignore[attr-defined]
    segments, at = [], 0
    for number, (past, length, in_store) in enumerate(rows):
        if in_store:
            segments.append(Segment(at, at + length, True, slot=slots[number], past=past))
            if past:
                _, key, value = heads(past, *grouping, seed=number + 10)
                store.write(0, slots[number], 0, key[0], value[0])
        else:
            segments.append(Segment(at, at + length, past % 2 == 0))
        at += length
    plan = Plan(tuple(segments), store=store)
    qkv = heads(at, *grouping)
    expected = joined(store, plan, qkv, window)
    torch.testing.assert_close(run(plan, qkv, sliding_window=window), expected, **EXACT)


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["softcap", "s_aux", "head_mask", "something_new"])
def test_options_without_a_kernel_are_refused_by_name(option: str) -> None:
    plan = Plan.of([3], causal=True)
    with pytest.raises(UnsupportedModelError, match=f"Layer.*{option}"):
        run(plan, heads(3), **{option: 1.0})
    run(plan, heads(3), **{option: None})


def test_a_plan_of_another_length_is_refused() -> None:
    with pytest.raises(InputError, match="covers 4 tokens and the row has 3"):
        run(Plan.of([4], causal=True), heads(3))


def test_a_layer_without_a_number_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="Identity"):
        attend(torch.nn.Identity(), *heads(3), None, plan=Plan.of([3], causal=True))


def test_without_a_plan_it_is_the_attention_of_transformers() -> None:
    qkv = heads(5, 4, 4)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()[None, None]
    out, _ = attend(Layer(), *qkv, mask)
    torch.testing.assert_close(out.transpose(1, 2), attend_plainly(Plan.of([5], causal=True), *qkv), **EXACT)


def test_a_pass_notes_the_layers_that_ran_and_their_windows() -> None:
    plan = Plan.of([3], causal=True)
    run(plan, heads(3))
    run_at_1 = Layer()
    run_at_1.layer_idx = 1
    attend(run_at_1, *heads(3), None, sliding_window=7, plan=plan)
    assert plan.layers_run == {0: None, 1: 7}


def test_masks_are_made_once_a_plan() -> None:
    plan = Plan.of([5, 5, 3], causal=False)
    for _ in range(3):
        run(plan, heads(13), sliding_window=2)
    assert len(plan._kept) == 2
