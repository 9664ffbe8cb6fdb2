"""Chunks to index and queries to ask, with their vectors, made without a model.

``clusters``: vectors around 1,000 centres, which lie around 50 themes; popular ones have more (Zipf). A chunk is its
centre plus noise of the same length, so its nearest neighbours have a cosine of about 0.6, as passages of one subject
have. Its text is drawn from a vocabulary of 20,000 words (Zipf) and its cluster's own 20.

``passages``: real text, the sources of Python's standard library cut every 10 lines. A vector is the text's TF-IDF over
hashed words and pairs of words, projected at random: near-duplicates, short lists and long prose, as texts are.

This module knows nothing about stores.
"""

from __future__ import annotations

import itertools
import re
import sysconfig
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_WORDS = 20_000
_CENTRES, _THEMES = 1000, 50
_LINES = 10
_BUCKETS = 1 << 16
_MOST_QUERIES = 1000


@dataclass(frozen=True, eq=False)
class Batch:
    """Chunks with consecutive numbers."""

    texts: list[str]
    vectors: NDArray[np.float32]


class Clusters:
    """The first of the two kinds; every batch follows from the seed and its place alone."""

    def __init__(self, num: int, dim: int, seed: int) -> None:
        self.num = num
        self._dim = dim
        self._seed = seed
        rng = np.random.default_rng([seed, 1])
        themes = rng.normal(size=(_THEMES, dim))
        self._centres = _unit(themes[rng.integers(0, _THEMES, _CENTRES)] + rng.normal(size=(_CENTRES, dim)))
        self._popular = _zipf(_CENTRES, 0.7)
        self._frequent = _zipf(_WORDS, 1.0)

    def batches(self, size: int) -> Iterator[Batch]:
        """All chunks."""
        for start in range(0, self.num, size):
            yield self._made(min(size, self.num - start), 2 + start)

    def queries(self, num: int) -> Batch:
        """Vectors like the chunks', and a few words out of texts like theirs."""
        batch = self._made(num, 0)
        return Batch([" ".join(text.split()[:5]) for text in batch.texts], batch.vectors)

    def _made(self, num: int, place: int) -> Batch:
        rng = np.random.default_rng([self._seed, 2, place])
        which = rng.choice(_CENTRES, num, p=self._popular)
        noise = rng.normal(size=(num, self._dim)) / np.sqrt(self._dim)
        texts = []
        for centre in which.tolist():
            own = rng.integers(0, 20, 8) + 20 * centre + _WORDS
            words = np.concatenate([own, rng.choice(_WORDS, rng.integers(40, 100), p=self._frequent)])
            texts.append(" ".join(f"w{word}" for word in rng.permutation(words).tolist()))
        return Batch(texts, _unit(self._centres[which] + noise))


class Passages:
    """The second kind; ``num`` is lowered to what there is."""

    def __init__(self, num: int, dim: int, seed: int) -> None:
        texts = _passages()
        order = np.random.default_rng([seed, 3]).permutation(len(texts)).tolist()
        self._asked = [texts[one] for one in order[:_MOST_QUERIES]]
        self._texts = [texts[one] for one in order[_MOST_QUERIES : _MOST_QUERIES + num]]
        self.num = len(self._texts)
        self._projection = np.random.default_rng([seed, 4]).normal(size=(_BUCKETS, dim)).astype(np.float32)
        seen = np.zeros(_BUCKETS)
        for text in self._texts[:20_000]:
            seen[list(_counts(text))] += 1
        self._weights = np.log((1 + min(self.num, 20_000)) / (1 + seen))

    def batches(self, size: int) -> Iterator[Batch]:
        """All chunks."""
        for start in range(0, self.num, size):
            texts = self._texts[start : start + size]
            yield Batch(texts, self._vectors(texts))

    def queries(self, num: int) -> Batch:
        """Passages that were left out, and the first few words of each."""
        asked = self._asked[:num]
        return Batch([" ".join(re.findall(r"\w+", text)[:5]) for text in asked], self._vectors(asked))

    def _vectors(self, texts: list[str]) -> NDArray[np.float32]:
        vectors = np.empty((len(texts), self._projection.shape[1]), np.float32)
        for row, text in enumerate(texts):
            counts = _counts(text)
            buckets = np.fromiter(counts, np.int64, len(counts))
            weights = self._weights[buckets] * np.log1p(np.fromiter(counts.values(), np.float64, len(counts)))
            vectors[row] = weights.astype(np.float32) @ self._projection[buckets]
        return _unit(vectors)


KINDS: dict[str, type[Clusters] | type[Passages]] = {"clusters": Clusters, "passages": Passages}


def _passages() -> list[str]:
    found = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" in path.parts:
            continue
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        for start in range(0, len(lines), _LINES):
            text = "\n".join(lines[start : start + _LINES]).strip()
            if len(text.split()) >= 5:
                found.append(text)
    return found


def _counts(text: str) -> Counter[int]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    pairs = [f"{one} {other}" for one, other in itertools.pairwise(words)]
    return Counter(zlib.crc32(term.encode()) % _BUCKETS for term in [*words, *pairs])


def _zipf(num: int, power: float) -> NDArray[np.float64]:
    weights = 1 / np.arange(1, num + 1) ** power
    return np.asarray(weights / weights.sum())


def _unit(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-9), dtype=np.float32)
