"""Attention of a decode step: one token of every row, over the slots that hold what came before it.

Rows are attended in batches of neighbouring slots, each one masked call on a view of the store: nothing is copied, and
what is read in vain is bounded. Row by row takes a CPU about twice as long, and a GPU a launch for each row.

This module knows nothing about layers, models or who writes to the store.

Shapes: R decoding rows, B slots of a batch, H query heads, G key-value heads, L places, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gritkit.plan import Plan, Segment

_WASTE = 0.5
"""Places that a batch may read in vain, as a share of those that it needs."""
_CALL = {"cpu": 64, "cuda": 8192}
"""Places whose reading takes about as long as a call; so many more may be read to save one."""
_ALIGNED = 8
"""Places are read in multiples of it: a mask of another width is copied by the kernels of GPUs."""


@dataclass(frozen=True)
class _Batch:
    """Neighbouring slots, attended in one call."""

    first: int
    last: int
    start: int
    end: int
    queries_B: Tensor | None
    """Which row's query each slot takes; a slot of no decoding row takes any, and its output is not used. None: the
    rows are the slots."""
    mask_B11L: Tensor | None
    """What is added to the scores: 0 or minus infinity."""


@dataclass(frozen=True)
class _Batches:
    batches: tuple[_Batch, ...]
    outputs_R: Tensor | None
    """Where each row's output stands among those of all batches; None: in their order."""


def attend_decoding(
    plan: Plan, layer: int, query_1HRD: Tensor, scaling: float | None, sliding_window: int | None
) -> Tensor:
    """Attention of the plan's first R = ``num_decoding`` segments, whose keys the store has by now. [1, H, R, D]."""
    assert plan.store is not None
    made = plan.kept(
        ("decoding", sliding_window, query_1HRD.device, query_1HRD.dtype),
        lambda: (_batches if plan.places is None else _all_slots)(plan, sliding_window, query_1HRD),
    )
    query_RHD = query_1HRD[0].transpose(0, 1)
    outputs = []
    for batch in made.batches:
        key_BGLD, value_BGLD = plan.store.get_many(layer, batch.first, batch.last, batch.start, batch.end)
        query_BHD = query_RHD if batch.queries_B is None else query_RHD[batch.queries_B]
        # the heads that share a key-value head stand where its queries would: it is read once for all of them
        grouped_BGND = query_BHD.unflatten(1, (key_BGLD.shape[1], -1))
        out_BGND = scaled_dot_product_attention(
            grouped_BGND, key_BGLD, value_BGLD, attn_mask=batch.mask_B11L, scale=scaling
        )
        outputs.append(out_BGND.flatten(1, 2))
    out_RHD = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return (out_RHD if made.outputs_R is None else out_RHD[made.outputs_R]).transpose(0, 1)[None]


def _all_slots(plan: Plan, sliding_window: int | None, query_1HRD: Tensor) -> _Batches:
    """One batch of the plan's slots, whose mask follows from their places on the device alone, without a copy from the
    host: it can be captured. A slot whose token stands past all places is idle, and sees a number that is there."""
    assert plan.places is not None
    end = plan.segments[0].past + 1
    back, _ = plan.reach(plan.segments[0], sliding_window)
    last_S1 = plan.places[:, None]
    place_1L = torch.arange(end, device=query_1HRD.device)[None]
    seen_SL = (place_1L <= last_S1) & ((last_S1 < end) | (place_1L == 0))
    if back is not None:
        seen_SL &= (place_1L >= last_S1 - back) | (last_S1 >= end)
    mask_SL = torch.zeros_like(seen_SL, dtype=query_1HRD.dtype).masked_fill(~seen_SL, float("-inf"))
    return _Batches((_Batch(0, len(plan.segments), 0, end, None, mask_SL[:, None, None]),), None)


def _batches(plan: Plan, sliding_window: int | None, query_1HRD: Tensor) -> _Batches:
    assert plan.store is not None
    device, dtype = query_1HRD.device, query_1HRD.dtype
    rows = plan.segments[: plan.num_decoding]
    back, _ = plan.reach(rows[0], sliding_window)
    groups = neighbours(rows, back, _CALL.get(device.type, _CALL["cuda"]))
    offsets, at = torch.empty(len(rows), dtype=torch.int64), 0
    batches = []
    for group in groups:
        slots = [_slot(rows[row]) for row in group]
        first, last = slots[0], slots[-1] + 1
        start = min(_first_seen(rows[row], back) for row in group)
        end = max(rows[row].past for row in group) + 1
        mask = None
        queries = torch.full((last - first,), group[0])
        places = torch.tensor(slots) - first
        queries[places] = torch.tensor(group)
        offsets[torch.tensor(group)] = at + places
        at += last - first
        if len(group) > 1:
            end = min(plan.store.max_length, start + -(-(end - start) // _ALIGNED) * _ALIGNED)
            mask = _mask([rows[row] for row in queries.tolist()], back, start, end, dtype).to(device)
        batches.append(_Batch(first, last, start, end, _unless_in_order(queries, len(rows), device), mask))
    return _Batches(tuple(batches), _unless_in_order(offsets, at, device))


def _unless_in_order(indices: Tensor, count: int, device: torch.device) -> Tensor | None:
    """None where the indices pick all of ``count`` things as they stand."""
    return None if indices.tolist() == list(range(count)) else indices.to(device)


def neighbours(rows: Sequence[Segment], back: int | None, call: int) -> list[list[int]]:
    """The rows in order of their slots, cut where one more would read too much in vain.

    Two tokens of one slot, as pieces of a prompt may be, never stand in one group.
    """
    ordered = sorted(range(len(rows)), key=lambda row: _slot(rows[row]))
    groups: list[list[int]] = []
    start = end = needed = 0
    for row in ordered:
        low, high = _first_seen(rows[row], back), rows[row].past + 1
        if groups:
            slots = _slot(rows[row]) - _slot(rows[groups[-1][0]]) + 1
            reading = slots * (max(end, high) - min(start, low))
            needing = needed + high - low
            taken = _slot(rows[row]) == _slot(rows[groups[-1][-1]])
            if not taken and reading - needing <= _WASTE * needing + call * len(groups[-1]):
                groups[-1].append(row)
                start, end, needed = min(start, low), max(end, high), needing
                continue
        groups.append([row])
        start, end, needed = low, high, high - low
    return groups


def _mask(rows: Sequence[Segment], back: int | None, start: int, end: int, dtype: torch.dtype) -> Tensor:
    last_B1 = torch.tensor([[row.past] for row in rows])
    place_1L = torch.arange(start, end)[None]
    seen_BL = place_1L <= last_B1
    if back is not None:
        seen_BL &= place_1L >= last_B1 - back
    return torch.zeros(seen_BL.shape, dtype=dtype).masked_fill(~seen_BL, float("-inf"))[:, None, None]


def _first_seen(row: Segment, back: int | None) -> int:
    return 0 if back is None else max(0, row.past - back)


def _slot(row: Segment) -> int:
    assert row.slot is not None
    return row.slot
