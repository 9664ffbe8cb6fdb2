"""Which source comes next, and what of it: seeded, and resumable at any place from a few numbers.

    Turns      one source, block after block and cycle after cycle
    Lottery    several of them, one picked at random each time

This module knows nothing about texts, batches or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from gritkit.data.sources import named
from gritkit.errors import InputError

T = TypeVar("T")

Sampling = Literal["proportional"] | float | Mapping[str, float]
"""``proportional``: every row once a cycle. A number: sources at random, by their size to that power. Weights by name:
sources at random, by these."""


def generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """Independent streams for every purpose and place, so that none depends on how often another was used."""
    return np.random.default_rng([seed, *purpose.encode(), *numbers])


def probabilities(
    sampling: float | Mapping[str, float], names: Sequence[str], sizes: Sequence[int]
) -> NDArray[np.float64]:
    """The chance of each source: p_i = size_i^a / sum_j size_j^a (multinomial sampling; Conneau & Lample 2019,
    arXiv 1901.07291, eq. 1), or its part of the weights.

    Raises:
        InputError: for a negative number, a name that no source has, a source without a weight, or no weight above 0.
    """
    if isinstance(sampling, Mapping):
        weights = _weights(sampling, names)
    elif isinstance(sampling, (int, float)) and math.isfinite(sampling) and sampling >= 0:
        weights = np.power(np.asarray(sizes, dtype=np.float64), float(sampling))
    else:
        raise InputError(f"sampling={sampling!r} is none of 'proportional', a number from 0, or weights by name")
    return np.asarray(weights / weights.sum())


def _weights(given: Mapping[str, float], names: Sequence[str]) -> NDArray[np.float64]:
    found: dict[str, float] = {}
    for name in sorted(given, key=lambda name: name in names):  # a name in full goes over one without the suffix
        weight = given[name]
        if not isinstance(weight, (int, float)) or not math.isfinite(weight) or weight < 0:
            raise InputError(f"the weight of {name!r} is {weight!r}: it must be a number from 0")
        found |= dict.fromkeys(named(name, names), float(weight))
    lacking = [name for name in names if name not in found]
    if lacking:
        raise InputError(f"sampling has no weight for {', '.join(lacking)}: add one, 0 to leave the source out")
    if not any(found.values()):
        raise InputError("sampling has no weight above 0: there is no source to draw")
    return np.asarray([found[name] for name in names])


class Turns(Generic[T]):
    """The items of one source. ``read(cycle, block)`` gives a block's items in their order: at least one of block 0,
    none past the last block."""

    def __init__(self, read: Callable[[int, int], Sequence[T]]) -> None:
        self._read = read
        self._items: Sequence[T] | None = None
        self._cycle, self._block, self._place = 0, 0, 0

    @property
    def items(self) -> Sequence[T]:
        """Those of the block that is used now."""
        if self._items is None:
            self._items = self._read(self._cycle, self._block)
        return self._items

    def draw(self) -> T:
        """The next item."""
        while self._place >= len(self.items):
            self._turn(*((self._cycle, self._block + 1) if self.items else (self._cycle + 1, 0)))
        item = self.items[self._place]
        self._place += 1
        return item

    def _turn(self, cycle: int, block: int) -> None:
        self._items = None  # the old block is let go before the new one is read
        self._cycle, self._block, self._place = cycle, block, 0

    def state(self) -> list[int]:
        """Cycle, block and place in the block."""
        return [self._cycle, self._block, self._place]

    def load_state(self, state: Sequence[int]) -> None:
        cycle, block, place = state
        if (cycle, block) != (self._cycle, self._block):
            self._turn(cycle, block)
        self._place = place


class Lottery(Generic[T]):
    """Items of several sources; which is next is a function of the seed and of how many were drawn."""

    def __init__(self, turns: Sequence[Turns[T]], chances: Sequence[float], seed: int, purpose: str) -> None:
        self._turns, self._seed, self._purpose = turns, seed, purpose
        self._bounds = np.cumsum(chances)
        self._drawn = 0

    def __bool__(self) -> bool:
        return bool(self._turns)

    def draw(self) -> T:
        """The next item of the source that was picked."""
        picked = 0
        if len(self._turns) > 1:
            point = generator(self._seed, self._purpose, self._drawn).random() * self._bounds[-1]
            picked = int(np.searchsorted(self._bounds, point, side="right"))
        self._drawn += 1
        return self._turns[picked].draw()

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self._drawn, "turns": [turns.state() for turns in self._turns]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._drawn = state["drawn"]
        for turns, place in zip(self._turns, state["turns"], strict=True):
            turns.load_state(place)
