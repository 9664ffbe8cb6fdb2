"""Plans by themselves; what the kernels make of them is in test_attention.py."""

from __future__ import annotations

import pytest

from gritkit.errors import InputError
from gritkit.kv.slots import SlotStore
from gritkit.plan import Plan, Segment

STORE = SlotStore(num_slots=2, max_length=8)


@pytest.mark.parametrize(
    ("segments", "store", "message"),
    [
        ((), None, "at least one token"),
        ((Segment(0, 0, True),), None, "tile"),
        ((Segment(1, 3, True),), None, "tile"),
        ((Segment(0, 3, True), Segment(4, 5, True)), None, "tile"),
        ((Segment(0, 3, True), Segment(2, 5, True)), None, "tile"),
        ((Segment(0, 3, True), Segment(3, 2, True)), None, "tile"),
        ((Segment(0, 3, True, reads=((0, 3),)),), None, "before it"),
        ((Segment(0, 3, True), Segment(3, 5, True, reads=((2, 4),))), None, "before it"),
        ((Segment(0, 3, True), Segment(3, 5, True, reads=((2, 2),))), None, "before it"),
        ((Segment(0, 3, True), Segment(3, 5, True, reads=((-1, 2),))), None, "before it"),
        ((Segment(0, 4, True), Segment(4, 5, True, reads=((0, 3), (2, 4)))), None, "once"),
        ((Segment(0, 3, True, past=2),), None, "slot"),
        ((Segment(0, 3, True, slot=0, past=-1),), STORE, "slot"),
        ((Segment(0, 3, True, slot=0),), None, "store"),
        ((Segment(0, 3, False, slot=0),), STORE, "causal"),
        ((Segment(0, 3, True), Segment(3, 5, True, reads=((0, 2),), slot=0)), STORE, "reads"),
        ((Segment(0, 3, True), Segment(3, 5, True, reads=((0, 2),))), STORE, "reads its slot"),
        ((Segment(0, 3, True, slot=1), Segment(3, 5, True, slot=1)), STORE, "written once"),
        ((Segment(0, 3, True, slot=1, past=4), Segment(3, 6, True, slot=1, past=2)), STORE, "written once"),
    ],
)
def test_plans_that_cannot_be_are_refused(segments: tuple[Segment, ...], store: SlotStore | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Plan(segments, store=store)


def test_gaps_between_segments_of_a_slot_are_allowed() -> None:
    parts = (Segment(0, 3, True, slot=1, past=4), Segment(3, 5, True, slot=1, past=2), Segment(5, 8, True, slot=0))
    assert Plan(parts, store=STORE).length == 8


def test_equal_neighbours_share_a_kernel_call() -> None:
    plan = Plan(
        (
            *Plan.of([4, 4, 4, 2], causal=False).segments,
            Segment(14, 16, True),
            Segment(16, 18, True, reads=((0, 4),)),
            Segment(18, 20, True, reads=((0, 4),)),
        )
    )
    assert [(first.start, count) for first, count in plan.runs] == [(0, 3), (12, 1), (14, 1), (16, 1), (18, 1)]
