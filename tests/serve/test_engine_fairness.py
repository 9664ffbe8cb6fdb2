"""Shares of the device, by simulation, and the waits that follow from them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gritkit_serve.engine.fairness import FairShare

KINDS = ("a", "b", "c")


@given(st.lists(st.floats(0.001, 1.0), min_size=3, max_size=3), st.integers(50, 200))
def test_those_who_always_want_get_equal_time(sizes: list[float], turns: int) -> None:
    """Whatever the length of a turn: the difference is never more than the longest one."""
    share = FairShare(KINDS)
    for _ in range(turns):
        kind = share.next(KINDS)
        assert kind is not None
        share.spent(kind, sizes[KINDS.index(kind)])
    assert max(share.seconds.values()) - min(share.seconds.values()) <= max(sizes) + 1e-9


def test_nobody_waits_longer_than_a_turn_of_each_other() -> None:
    """A short turn comes again after at most one long turn of each other kind, once they are level."""
    share = FairShare(KINDS)
    order = []
    for _ in range(60):
        kind = share.next(KINDS)
        assert kind is not None
        order.append(kind)
        share.spent(kind, {"a": 1.0, "b": 1.0, "c": 0.1}[kind])
    waits = [len(part) for part in "".join(order)[1:].split("c")]
    assert max(waits) <= 2


def turns_of_both(share: FairShare) -> list[str]:
    """Ten of them, of one length, while both want."""
    turns = []
    for _ in range(10):
        kind = share.next({"a", "b"})
        assert kind is not None
        turns.append(kind)
        share.spent(kind, 1.0)
    return turns


def test_idle_time_is_not_saved_up() -> None:
    """Who comes back after a long rest is level with who worked, and does not get the device alone."""
    share = FairShare(KINDS)
    for _ in range(100):
        assert share.next({"a"}) == "a"
        share.spent("a", 1.0)
    assert turns_of_both(share).count("b") == 5


def test_a_rest_is_no_escape_from_what_was_spent() -> None:
    """Who pauses between turns pays for them all the same."""
    share = FairShare(KINDS)
    share.next({"a", "b"})
    share.spent("b", 5.0)
    assert share.next({"a"}) == "a"
    share.spent("a", 1.0)
    assert share.next({"a", "b"}) == "a"


def test_rest_while_nobody_else_works_saves_nothing_up_either() -> None:
    """One kind alone, then another alone, which starts when nobody is left to be level with; then both."""
    share = FairShare(KINDS)
    for _ in range(100):
        assert share.next({"a"}) == "a"
        share.spent("a", 1.0)
    assert share.next({"b"}) == "b"
    share.spent("b", 0.5)
    assert turns_of_both(share).count("a") == 5


@given(st.lists(st.tuples(st.sets(st.sampled_from(KINDS)), st.integers(1, 20)), max_size=20))
def test_a_wait_is_bounded_whoever_comes_and_goes(phases: list[tuple[set[str], int]]) -> None:
    """With turns of one length: at most two of each other kind pass before who goes on wanting has its own."""
    share = FairShare(KINDS)
    waited = dict.fromkeys(KINDS, 0)
    for wanting in (wanting for wanting, turns in phases for _ in range(turns)):
        turn = share.next(sorted(wanting))
        for kind in KINDS:
            waited[kind] = waited[kind] + 1 if kind in wanting and kind != turn else 0
        if turn is not None:
            share.spent(turn, 1.0)
        assert max(waited.values()) <= 2 * (len(KINDS) - 1)


def test_nobody_wants() -> None:
    assert FairShare(KINDS).next(()) is None
