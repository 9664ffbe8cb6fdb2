"""What to keep under a byte budget: least recently used, weighed by what it costs to make again (GreedyDual-Size).

Every entry has the priority ``clock + cost / size``, set when it comes and again whenever it is used; the lowest
goes first, and the clock rises to the priority of what went. So an entry that is dear for its size outlives several
cheap ones, and still goes when nobody asks for it for long. With equal costs per byte this is LRU.
(Cao and Irani, Cost-Aware WWW Proxy Caching Algorithms, USITS 1997.)

``Ranking`` knows the order alone: the block store keeps one for its files. ``CostCache`` holds the values too: the
tiers in memory and on the device. This module knows nothing about blocks, files or devices.
"""

from __future__ import annotations

import heapq
import math
import threading
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")

_SLACK = 64  # stale heap entries that are not worth a clean-up


class _Entry(NamedTuple):
    priority: float
    number: int
    size: int
    cost: float


class Ranking:
    """Keys with size and cost in the order in which they should go. Not thread-safe; O(log n) a call, amortised."""

    def __init__(self) -> None:
        self.clock = 0.0
        self.num_bytes = 0
        """The sizes of all entries, summed."""
        self._entries: dict[str, _Entry] = {}
        self._heap: list[tuple[float, int, str]] = []  # entries that were replaced or discarded stay until they surface
        self._number = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def put(self, key: str, *, size: int, cost: float) -> None:
        """Enter a key, or set its size and cost; it counts as just used."""
        if size < 0 or not (cost >= 0 and math.isfinite(cost)):
            raise ValueError(f"size and cost must be finite and not negative, got {size} and {cost}")
        self.discard(key)
        self._number += 1
        entry = _Entry(self.clock + cost / max(size, 1), self._number, size, cost)
        self._entries[key] = entry
        self.num_bytes += size
        heapq.heappush(self._heap, (entry.priority, entry.number, key))
        if len(self._heap) > 2 * len(self._entries) + _SLACK:
            self._heap = [(entry.priority, entry.number, key) for key, entry in self._entries.items()]
            heapq.heapify(self._heap)

    def touch(self, key: str) -> None:
        """The key was used; nothing for an unknown one."""
        if (entry := self._entries.get(key)) is not None:
            self.put(key, size=entry.size, cost=entry.cost)

    def discard(self, key: str) -> None:
        """Forget a key; nothing for an unknown one."""
        if (entry := self._entries.pop(key, None)) is not None:
            self.num_bytes -= entry.size

    def pop_lowest(self, *, spare: Collection[str] = ()) -> str | None:
        """Remove and return the key that should go first, of those not spared; None when there is none."""
        spared = []
        lowest = None
        while self._heap:
            priority, number, key = heapq.heappop(self._heap)
            entry = self._entries.get(key)
            if entry is None or entry.number != number:
                continue
            if key in spare:
                spared.append((priority, number, key))
                continue
            self.clock = max(self.clock, priority)
            self.discard(key)
            lowest = key
            break
        for one in spared:
            heapq.heappush(self._heap, one)
        return lowest


class CostCache(Generic[T]):
    """Values in memory under a byte budget. Safe to use from several threads."""

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes must not be negative, got {max_bytes}")
        self.max_bytes = max_bytes
        self.counts: Counter[str] = Counter()
        """``hit`` and ``missing`` gets and ``evicted`` values so far."""
        self._values: dict[str, T] = {}
        self._ranking = Ranking()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: str) -> bool:
        """Whether it is kept; does not count as a use."""
        return key in self._values

    @property
    def num_bytes(self) -> int:
        """The sizes of all values, as their puts gave them; never above ``max_bytes``."""
        return self._ranking.num_bytes

    def get(self, key: str) -> T | None:
        """The value, which now counts as just used; None when it is not kept."""
        with self._lock:
            value = self._values.get(key)
            self.counts["missing" if value is None else "hit"] += 1
            self._ranking.touch(key)
        return value

    def put(self, key: str, value: T, *, size: int, cost: float = 1.0) -> bool:
        """Keep a value of ``size`` bytes that costs ``cost`` to make again (any unit, one for the whole cache).

        Others go until it fits. False when it is larger than the budget: it is not kept, nor is what its key had.
        """
        gone = []  # values die after the lock is free: a destructor of theirs may take long
        with self._lock:
            gone.append(self._values.pop(key, None))
            self._ranking.discard(key)
            if size > self.max_bytes:
                return False
            while self._ranking.num_bytes + size > self.max_bytes:
                victim = self._ranking.pop_lowest()
                assert victim is not None
                gone.append(self._values.pop(victim))
                self.counts["evicted"] += 1
            self._ranking.put(key, size=size, cost=cost)
            self._values[key] = value
        return True

    def resize(self, max_bytes: int) -> None:
        """Another budget from now on; what has no room in it goes."""
        if max_bytes < 0:
            raise ValueError(f"max_bytes must not be negative, got {max_bytes}")
        gone = []
        with self._lock:
            self.max_bytes = max_bytes
            while self._ranking.num_bytes > max_bytes:
                victim = self._ranking.pop_lowest()
                assert victim is not None
                gone.append(self._values.pop(victim))
                self.counts["evicted"] += 1
        del gone

    def pop(self, key: str) -> T | None:
        """Take a value out; None when it is not kept."""
        with self._lock:
            self._ranking.discard(key)
            return self._values.pop(key, None)

    def clear(self) -> None:
        """Forget all values."""
        with self._lock:
            gone, self._values = self._values, {}
            self._ranking = Ranking()
        del gone
