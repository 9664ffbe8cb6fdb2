"""Who gets the device next: of those who want it, the one who has had it for the least time.

The rule of fair queuing: with k kinds of work waiting, each gets a k-th of the device's time, however long its single
pieces are, so a flood of one kind cannot starve another. A kind that was idle starts level with the one that has had
least, or where nobody else has gone on wanting with the one that had the last turn, and so cannot save up time to spend
in one go.

This module knows nothing about what the work is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence


class FairShare:
    """Device time of each kind of work, in seconds."""

    def __init__(self, kinds: Sequence[str]) -> None:
        self.seconds = dict.fromkeys(kinds, 0.0)
        """How long each kind has had the device, in all."""
        self._clock = dict.fromkeys(kinds, 0.0)
        self._wanting: frozenset[str] = frozenset()
        self._latest = 0.0
        """The clock of whoever had the last turn."""

    def next(self, wanting: Collection[str]) -> str | None:
        """Whose turn it is among those that have work; None when nobody has."""
        staying = [self._clock[kind] for kind in wanting if kind in self._wanting]
        floor = min(staying, default=self._latest)
        for kind in wanting:
            if kind not in self._wanting:
                self._clock[kind] = max(self._clock[kind], floor)
        self._wanting = frozenset(wanting)
        return min(wanting, key=lambda kind: self._clock[kind]) if wanting else None

    def spent(self, kind: str, seconds: float) -> None:
        """The kind has had the device for so long."""
        self.seconds[kind] += seconds
        self._clock[kind] += seconds
        self._latest = self._clock[kind]
