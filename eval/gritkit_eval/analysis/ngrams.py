"""Which word n-grams of a set of texts occur in a stream of others, in memory bounded by the set.

The evaluation's n-grams are hashed into a sorted array and training texts stream past it, as in the contamination study
of GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C: N between 8 and 13). A text with fewer than n words counts as
one gram of its own length: it is found where a training text holds it whole.

Words of the evaluation have random 64-bit numbers w, others 0; a gram's hash is sum of w_i * B^(n-i) modulo 2^64, so a
gram is taken for another with a probability of about 2^-60.

This module knows nothing about files or what its findings mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gritkit.errors import InputError

Hashes = npt.NDArray[np.uint64]
_BASE = np.uint64(0x9E3779B97F4A7C15)
_SEED = 13


@dataclass(frozen=True)
class Overlap:
    """What one text shares with the stream."""

    grams: int
    """Different n-grams of the text."""
    shared: int
    source: int | None
    """The number of the training text that was the first to hold the most of them; None where none is shared."""

    @property
    def share(self) -> float:
        return self.shared / self.grams


class GramSet:
    """The n-grams of texts that were cut into words, and which of them were met."""

    def __init__(self, texts: Sequence[Sequence[str]], n: int) -> None:
        """Raises InputError for an n below 1, and for a text without words."""
        if n < 1:
            raise InputError(f"n={n} must be at least 1")
        if not all(texts):
            raise InputError("a text without words has no n-grams")
        self.n = n
        names = dict.fromkeys(word for text in texts for word in text)
        numbers = np.random.default_rng(_SEED).integers(1, 2**64, size=len(names), dtype=np.uint64)
        self._numbers = dict(zip(names, numbers.tolist(), strict=True))
        self._sizes = [min(len(text), n) for text in texts]
        self._own = [
            np.unique(_hashes(self._ids(text), [size])[size]) for text, size in zip(texts, self._sizes, strict=True)
        ]
        by_size: dict[int, list[Hashes]] = {}
        for own, size in zip(self._own, self._sizes, strict=True):
            by_size.setdefault(size, []).append(own)
        self._sorted = {size: np.unique(np.concatenate(parts)) for size, parts in sorted(by_size.items())}
        self._first = {size: np.full(len(grams), -1, np.int64) for size, grams in self._sorted.items()}

    def _ids(self, text: Sequence[str]) -> Hashes:
        known = self._numbers.get
        return np.fromiter((known(word, 0) for word in text), np.uint64, len(text))

    def meet(self, number: int, text: Sequence[str]) -> bool:
        """A training text streams past, under a number of its own; whether it is the first to hold any n-gram."""
        ids, new = self._ids(text), False
        if not ids.any():
            return False
        for size, hashes in _hashes(ids, [size for size in self._sorted if size <= len(ids)]).items():
            grams = self._sorted[size]
            places = np.minimum(np.searchsorted(grams, hashes), len(grams) - 1)
            met = places[grams[places] == hashes]
            first = self._first[size]
            unseen = met[first[met] < 0]
            first[unseen] = number
            new |= len(unseen) > 0
        return new

    def overlaps(self) -> list[Overlap]:
        """What each text of the set shares with all that was met so far."""
        return [self._overlap(own, size) for own, size in zip(self._own, self._sizes, strict=True)]

    def _overlap(self, own: Hashes, size: int) -> Overlap:
        first = self._first[size][np.searchsorted(self._sorted[size], own)]
        met = first[first >= 0].tolist()
        if not met:
            return Overlap(len(own), 0, None)
        counts = Counter(met)
        return Overlap(len(own), len(met), min(counts, key=lambda number: (-counts[number], number)))


def _hashes(ids: Hashes, sizes: Sequence[int]) -> dict[int, Hashes]:
    """The hash of every window of each size; the loop for the largest passes all smaller ones."""
    found: dict[int, Hashes] = {}
    current = np.zeros(len(ids), np.uint64)
    for size in range(1, max(sizes, default=0) + 1):
        num = len(ids) - size + 1
        current = current[:num] * _BASE + ids[size - 1 :]
        if size in sizes:
            found[size] = current
    return found
