"""What each token of a packed row may see: segments, and the plan that lists them.

A batch is one *packed row*: many sequences one after the other, without padding. A :class:`Plan` lists its
:class:`Segment` s: where the queries of a sequence stand, whether they see each other causally or both ways, and which
keys they see before their own - other ranges of the row (documents that an answer reads) or a slot of a key-value store
(what was already decoded). Embedding, generating, training and serving are builders of plans.

The rule of sliding windows is here too, in one place for every kernel. This module knows nothing about models, kernels
or where key-values are stored.

Shapes: T tokens of the row, G key-value heads, D head size, B slots.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from gritkit.errors import InputError

T = TypeVar("T")
WindowRule = Literal["exclusive", "inclusive", "full"]
"""How far a bidirectional segment of a sliding-window layer sees: |q-k| < W, |q-k| <= W, or everything."""


@dataclass(frozen=True)
class Segment:
    """One sequence of the packed row.

    Its queries are the row's tokens ``start`` to ``end`` (exclusive). Their keys are, in this order: the ranges
    ``reads`` of the same row, or the first ``past`` tokens of ``slot`` in the plan's store; then the segment itself,
    ``causal`` or not. Windows count positions in that joined order, as though what is read stood right before.
    """

    start: int
    end: int
    causal: bool
    reads: tuple[tuple[int, int], ...] = ()
    slot: int | None = None
    past: int = 0

    @property
    def length(self) -> int:
        return self.end - self.start

    @property
    def before(self) -> int:
        """How many keys stand before the segment's own."""
        return self.past + sum(end - start for start, end in self.reads)


class KeyValueStore(Protocol):
    """Slots of key-values that outlive a forward call (``gritkit.kv.slots`` has the implementation)."""

    max_length: int
    """Tokens that a slot holds."""

    def put(self, layer: int, plan: Plan, key_1GTD: Tensor, value_1GTD: Tensor) -> None:
        """Write each segment's keys and values to its slot, after its ``past`` tokens."""

    def get(self, layer: int, slot: int, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values [1, G, end-start, D] of one slot, not copied."""

    def get_many(self, layer: int, first: int, last: int, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Of the slots ``first`` to ``last`` (exclusive), [last-first, G, end-start, D], not copied; past what a slot
        holds, any finite numbers."""


KeyHook = Callable[[int, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(layer, query, key, value) -> (query, key), called before attention: deferred rotation taps un-rotated keys here."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What every token of one packed row may see; made for one forward call and not used again.

    Raises:
        InputError: when the segments do not tile the row, read what is not before them, or name a slot without a store.
    """

    segments: tuple[Segment, ...]
    window_rule: WindowRule = "exclusive"
    store: KeyValueStore | None = None
    key_hook: KeyHook | None = None
    window_cap: int | None = None
    """Narrows every sliding window; the load-time probe looks through small windows at a model whose own is large."""
    places: Tensor | None = None
    """Int64 [S]: where the token of each of the first S slots stands, for a pass that is captured once and replayed.
    The segments are then those slots, each with the longest past that the captured pass can have."""
    layers_run: dict[int, int | None] = field(default_factory=dict)
    """Layer -> its sliding window, of the layers that attended by this plan; filled during the call, checked after."""
    _kept: dict[Hashable, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        at = 0
        for segment in self.segments:
            if segment.start != at or segment.end <= at:
                raise InputError(f"segments must tile the row without gaps: {segment} does not start at {at}")
            if any(not 0 <= start < end <= segment.start for start, end in segment.reads):
                raise InputError(f"a segment reads only what stands before it in the row: {segment}")
            ordered = sorted(segment.reads)
            if any(end > start for (_, end), (start, _) in pairwise(ordered)):
                raise InputError(f"a segment reads a key once: {segment}")
            if segment.past < 0 or (segment.slot is None and segment.past):
                raise InputError(f"past tokens need a slot: {segment}")
            if segment.slot is not None and (self.store is None or segment.reads or not segment.causal):
                raise InputError(f"a slot needs a store, causal attention and no other reads: {segment}")
            if self.store is not None and segment.reads:
                raise InputError(f"beside a store a segment reads its slot or nothing: {segment}")
            at = segment.end
        if at == 0:
            raise InputError("a plan needs at least one token")
        # all of them are written before any attends, so in one slot each sees what those before it wrote in this pass
        written = sorted((s.slot, s.past, s.past + s.length) for s in self.segments if s.slot is not None)
        if any(one == other and end > start for (one, _, end), (other, start, _) in pairwise(written)):
            raise InputError(f"a place in a slot is written once in a pass, not as in {written} of (slot, start, end)")

    @property
    def length(self) -> int:
        return self.segments[-1].end

    @staticmethod
    def of(lengths: Sequence[int], *, causal: bool, window_rule: WindowRule = "exclusive", **rest: Any) -> Plan:
        """Sequences of the given lengths one after the other, each alone."""
        segments, at = [], 0
        for length in lengths:
            segments.append(Segment(at, at + length, causal))
            at += length
        return Plan(tuple(segments), window_rule, **rest)

    @functools.cached_property
    def runs(self) -> tuple[tuple[Segment, int], ...]:
        """(first segment, count) of neighbouring segments that differ only in their place: one kernel call each."""
        groups = groupby(self.segments, lambda s: (s.length, s.causal, s.start if s.reads else -1))
        return tuple((next(group), 1 + sum(1 for _ in group)) for _, group in groups)

    def reach(self, segment: Segment, sliding_window: int | None) -> tuple[int | None, int | None]:
        """How far back and ahead a query of the segment sees, each None where unlimited (ahead is 0 when causal)."""
        if sliding_window is None:
            return None, 0 if segment.causal else None
        window = sliding_window if self.window_cap is None else min(sliding_window, self.window_cap)
        if segment.causal:
            return window - 1, 0
        if self.window_rule == "full":
            return None, None
        sees = window - 1 if self.window_rule == "exclusive" else window
        return sees, sees

    @functools.cached_property
    def num_decoding(self) -> int:
        """How many segments at the beginning are one token of a slot, as those of a decode step are."""
        return next((i for i, s in enumerate(self.segments) if s.slot is None or s.length > 1), len(self.segments))

    def decoding_places(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Slots of the decoding segments and the places of their tokens in them, int64 [num_decoding] each."""

        def make() -> tuple[Tensor, Tensor]:
            if self.places is not None:
                return torch.arange(len(self.places), device=device), self.places
            decoding = self.segments[: self.num_decoding]
            slots, places = ([getattr(s, name) for s in decoding] for name in ("slot", "past"))
            return torch.tensor(slots, device=device), torch.tensor(places, device=device)

        return self.kept(("decoding places", device), make)

    def kept(self, name: Hashable, make: Callable[[], T]) -> T:
        """What the first layer that asks for it makes and the others take over: indices and masks on a device."""
        if name not in self._kept:
            self._kept[name] = make()
        found: T = self._kept[name]
        return found

    def mask(self, num_queries: int, before: int, back: int | None, ahead: int | None, device: torch.device) -> Tensor:
        """Boolean [num_queries, before + num_queries], True where the query sees the key."""

        def make() -> Tensor:
            query = torch.arange(before, before + num_queries, device=device)[:, None]
            distance = query - torch.arange(before + num_queries, device=device)[None]
            seen = torch.ones_like(distance, dtype=torch.bool)
            if back is not None:
                seen &= distance <= back
            if ahead is not None:
                seen &= distance >= -ahead
            return seen

        return self.kept(("mask", num_queries, before, back, ahead, device), make)
