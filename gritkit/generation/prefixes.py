"""Which slot a prompt joins: one that already holds its beginning, so that a chat's next turn reads only what is new.

A slot keeps its key-values after its row has left, until another row writes over them. A prompt that continues what a
free slot holds joins that slot; one that shares only a beginning, with a free slot or with a row that is still running,
gets a copy of it. Prompts of one ``salt`` alone share: what another tenant asked cannot be told from the time an answer
takes.

This module knows nothing about tensors or requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_LEAST = 8
"""Tokens below which looking anything up is not worth the copy."""


@dataclass(frozen=True)
class Held:
    """The tokens whose key-values a slot holds from its start on, and who may share them."""

    ids: NDArray[np.int64]
    salt: str

    def shared(self, ids: NDArray[np.int64], salt: str) -> int:
        """How many tokens both begin with."""
        if salt != self.salt:
            return 0
        length = min(len(ids), len(self.ids))
        differ = np.flatnonzero(ids[:length] != self.ids[:length])
        return int(differ[0]) if len(differ) else length


@dataclass(frozen=True)
class Choice:
    """Where a prompt goes."""

    slot: int
    source: int | None = None
    """The slot to copy from; None where the slot itself holds the beginning, or nobody does."""
    length: int = 0
    """Tokens of the prompt that need not be computed."""


class FreeSlots:
    """What the free slots hold, in the order in which they were left."""

    def __init__(self) -> None:
        self._held: dict[int, Held] = {}

    def left(self, slot: int, held: Held | None) -> None:
        """A row has left the slot; None where what it holds is of no use to others."""
        self._held.pop(slot, None)
        if held is not None and len(held.ids) >= _LEAST:
            self._held[slot] = held

    def choose(self, free: Sequence[int], running: Mapping[int, Held], prompt_ids: Sequence[int], salt: str) -> Choice:
        """The slot for a prompt, out of ``free``; at least its last token is left to compute. The slot is then taken.

        Written over, where nothing is shared, is a slot that holds nothing, or else the one that was left first.
        """
        ids = np.asarray(prompt_ids, dtype=np.int64)
        candidates = {**running, **{slot: held for slot, held in self._held.items() if slot in free}}
        source, shared = None, 0
        for slot, held in candidates.items():
            common = min(held.shared(ids, salt), len(ids) - 1)
            if common > shared:
                source, shared = slot, common
        if source is None or shared < _LEAST:
            choice = Choice(self._oldest(free))
        elif source in free and (len(free) == 1 or len(candidates[source].ids) <= shared + 1):
            choice = Choice(source, None, shared)
        else:
            choice = Choice(self._oldest([slot for slot in free if slot != source]), source, shared)
        self._held.pop(choice.slot, None)
        return choice

    def _oldest(self, free: Sequence[int]) -> int:
        unused = [slot for slot in free if slot not in self._held]
        return unused[-1] if unused else next(slot for slot in self._held if slot in free)
