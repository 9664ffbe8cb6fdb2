from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gritkit.decode_attention import attend_decoding, neighbours
from gritkit.kv.slots import SlotStore
from gritkit.plan import Plan, Segment

NUM_SLOTS, PLACES = 24, 200
rows = st.lists(st.tuples(st.integers(0, NUM_SLOTS - 1), st.integers(0, PLACES - 1)), min_size=1, max_size=12).map(
    lambda pairs: tuple(
        Segment(i, i + 1, True, slot=slot, past=past) for i, (slot, past) in enumerate(sorted(set(pairs), key=hash))
    )
)
windows = st.sampled_from([None, 1, 5, 60])


def full_store(heads: int, size: int) -> SlotStore:
    """Every place of every slot has numbers: what lies past a row's end must not matter."""
    store = SlotStore(NUM_SLOTS, PLACES)
    generator = torch.Generator().manual_seed(0)
    for slot in range(NUM_SLOTS):
        kv = (torch.randn(heads, PLACES, size, dtype=torch.float64, generator=generator) * 3 for _ in range(2))
        store.write(0, slot, 0, *kv)
    return store


def row_by_row(plan: Plan, query: Tensor, window: int | None) -> Tensor:
    """softmax(q k) v of one row after the other, by the formula."""
    assert plan.store is not None
    outputs = []
    for segment in plan.segments:
        assert segment.slot is not None
        low = 0 if window is None else max(0, segment.past - window + 1)
        key, value = plan.store.get(0, segment.slot, low, segment.past + 1)
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        scores = query[:, :, segment.start : segment.end] @ key.transpose(2, 3) / query.shape[3] ** 0.5
        outputs.append(scores.softmax(-1) @ value)
    return torch.cat(outputs, 2)


@settings(max_examples=60, deadline=None)
@given(segments=rows, window=windows, heads=st.sampled_from([(4, 4), (4, 2), (6, 1)]))
def test_rows_together_equal_row_by_row(
    segments: tuple[Segment, ...], window: int | None, heads: tuple[int, int]
) -> None:
    plan = Plan(segments, store=full_store(heads[1], 8))
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(1, heads[0], len(segments), 8, dtype=torch.float64, generator=generator)
    for _ in range(2):  # the second layer takes over what the first has made
        out = attend_decoding(plan, 0, query, None, window)
        torch.testing.assert_close(out, row_by_row(plan, query, window), atol=1e-12, rtol=1e-12)


@settings(max_examples=200, deadline=None)
@given(segments=rows, back=st.sampled_from([None, 0, 30]), call=st.sampled_from([0, 64, 8192]))
def test_every_row_is_in_one_group_and_little_is_read_in_vain(
    segments: tuple[Segment, ...], back: int | None, call: int
) -> None:
    groups = neighbours(segments, back, call)
    assert sorted(row for group in groups for row in group) == list(range(len(segments)))
    for group in groups:
        slots = [segments[row].slot or 0 for row in group]
        assert slots == sorted(set(slots))
        spans = [(0 if back is None else max(0, segments[i].past - back), segments[i].past + 1) for i in group]
        reading = (slots[-1] - slots[0] + 1) * (max(end for _, end in spans) - min(start for start, _ in spans))
        needed = sum(end - start for start, end in spans)
        assert reading <= 1.5 * needed + call * (len(group) - 1)


def test_neighbours_are_one_call_and_a_long_row_goes_alone() -> None:
    short = [Segment(i, i + 1, True, slot=i, past=20) for i in range(8)]
    assert len(neighbours(short, None, 64)) == 1
    outlier = Segment(3, 4, True, slot=3, past=4000)
    assert [3] in neighbours([*short[:3], outlier, *short[4:]], None, 64)
    assert len(neighbours([short[0], Segment(1, 2, True, slot=0, past=21)], None, 64)) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_have_the_dtype_of_the_queries(dtype: torch.dtype) -> None:
    store = SlotStore(2, 9)
    for slot in (0, 1):
        store.write(0, slot, 0, *(torch.ones(2, 9, 8, dtype=dtype) for _ in range(2)))
    plan = Plan(tuple(Segment(i, i + 1, True, slot=i, past=4 * i) for i in range(2)), store=store)
    out = attend_decoding(plan, 0, torch.ones(1, 2, 2, 8, dtype=dtype), None, None)
    assert out.dtype == dtype
    assert torch.equal(out, torch.ones_like(out))
