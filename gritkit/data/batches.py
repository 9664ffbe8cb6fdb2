"""What a global batch is, and how the rows of a training set are put together to batches that repeat nothing.

Full batches are of one part of the set each; what is left of all parts forms mixed batches, the last ones filled up
with rows drawn anew. Within a batch no query and no positive occurs twice; a row that would repeat one waits for the
next batch. Only rows whose queries meet no passages but their own need not wait.

This module knows nothing about epochs, states, packing, devices or losses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from gritkit.data.tokenised import TokenisedData
from gritkit.tokens import TokenSeq

_LOOK = 16  # a batch looks at this many rows per row it wants before it gives up on finding one that repeats nothing


@dataclass(frozen=True)
class ContrastiveBatch:
    """Q queries and their passages: first the positive of each query, in order, then all hard negatives."""

    source: str
    """The source's name; empty for a batch mixed from what several had left."""
    queries: list[TokenSeq]
    passages: list[TokenSeq]
    owners: list[int]
    """For each passage, the query that it was given with."""
    query_words: list[int]
    passage_words: list[int]
    """Ids that are equal where the texts are; a passage equal to a query's positive is no negative of it."""
    alone: list[bool]
    """For each query whether it meets only the passages that it was given with."""
    answers: list[TokenSeq | None]
    """For each query, the question that follows its passages and the answer to it; or None."""


@dataclass(frozen=True)
class MixedBatch:
    """One step's global batch; either half may be absent."""

    contrastive: ContrastiveBatch | None
    generative: list[TokenSeq]


Choice = tuple[int, int]
"""A row, and which of its positives a batch takes."""


class Pool:
    """Rows to make batches of ``size`` queries from, known by their numbers; each source's rows are a range of them."""

    def __init__(self, data: TokenisedData, size: int, alone: Collection[str] = ()) -> None:
        self._texts, self._answers, self._size = data.texts, data.answers, size
        self._rows = [row for _, rows in data.embedding for row in rows]
        self._names = [name for name, _ in data.embedding]
        self._alone = [name in alone for name in self._names]
        counts = [len(rows) for _, rows in data.embedding]
        ends = np.cumsum(counts, dtype=np.int64).tolist()
        self.parts = [range(end - count, end) for end, count in zip(ends, counts, strict=True)]
        self._part = np.repeat(np.arange(len(counts)), counts)
        """For each row, the source that it is of."""

    def drafts(self, parts: Sequence[range], random: np.random.Generator) -> list[list[Choice]]:
        """Batches in random order that use every row of the parts once, and those once more that fill the last ones."""
        drafts: list[list[Choice]] = []
        left: list[int] = []
        for part in parts:
            queue = deque(part.start + int(row) for row in random.permutation(len(part)))
            while len(queue) >= self._size:
                chosen = self._take(queue, random)
                if len(chosen) < self._size:
                    queue.extend(row for row, _ in chosen)
                    break
                drafts.append(chosen)
            left += queue
        queue = deque(left[i] for i in random.permutation(len(left)))
        while queue:
            chosen = self._take(queue, random)
            self._fill(chosen, random)
            drafts.append(chosen)
        return [drafts[i] for i in random.permutation(len(drafts))]

    def batch(self, draft: Sequence[Choice], num_hard_negatives: int, random: np.random.Generator) -> ContrastiveBatch:
        """The texts of a draft, with hard negatives drawn from those of each row."""
        rows = [self._rows[number] for number, _ in draft]
        parts = [int(self._part[number]) for number, _ in draft]
        names = {self._names[part] for part in parts}
        passages = [row.pos[positive] for row, (_, positive) in zip(rows, draft, strict=True)]
        owners = list(range(len(rows)))
        table = self._texts
        for owner, row in enumerate(rows):
            positive = {int(table.words[number]) for number in row.pos}
            negatives = [number for number in row.neg if int(table.words[number]) not in positive]
            for place in _some(len(negatives), num_hard_negatives, random):
                passages.append(negatives[place])
                owners.append(owner)
        return ContrastiveBatch(
            source=names.pop() if len(names) == 1 else "",
            queries=[table.sequences[row.query] for row in rows],
            passages=[table.sequences[number] for number in passages],
            owners=owners,
            query_words=[int(table.words[row.query]) for row in rows],
            passage_words=[int(table.words[number]) for number in passages],
            alone=[self._alone[part] for part in parts],
            answers=[None if row.answer is None else self._answers[row.answer] for row in rows],
        )

    def _take(self, queue: deque[int], random: np.random.Generator) -> list[Choice]:
        """Up to a batch of rows from the front of the queue that repeat nothing; those that would stay in front."""
        chosen: list[Choice] = []
        seen: set[tuple[str, int]] = set()
        waiting = []
        looks = _LOOK * self._size
        while queue and len(chosen) < self._size and looks:
            row = queue.popleft()
            looks -= 1
            positive = self._fitting(row, seen, random)
            if positive is None:
                waiting.append(row)
            else:
                chosen.append((row, positive))
        queue.extendleft(reversed(waiting))
        return chosen

    def _fill(self, chosen: list[Choice], random: np.random.Generator) -> None:
        """Bring a short batch to size with rows drawn anew from the sources that are in it, as far as they do not
        repeat."""
        seen: set[tuple[str, int]] = set()
        for row, positive in chosen:
            seen |= self._words(row, positive)
        pool = [row for part in sorted({int(self._part[row]) for row, _ in chosen}) for row in self.parts[part]]
        if len(chosen) == self._size or len(pool) <= len(chosen):
            return
        for place in random.permutation(len(pool))[: _LOOK * self._size]:
            row = pool[place]
            fitting = self._fitting(row, seen, random)
            if fitting is not None:
                chosen.append((row, fitting))
                if len(chosen) == self._size:
                    return

    def _fitting(self, row: int, seen: set[tuple[str, int]], random: np.random.Generator) -> int | None:
        """A random positive of the row that, like its query, is not in the batch yet (and is from now on); or None."""
        count = len(self._rows[row].pos)
        for positive in random.permutation(count) if count > 1 else (0,):
            words = self._words(row, int(positive))
            if not words & seen:
                seen |= words
                return int(positive)
        return None

    def _words(self, row: int, positive: int) -> set[tuple[str, int]]:
        """What no other row of the batch may have."""
        if self._alone[self._part[row]]:
            return {("row", row)}
        record, words = self._rows[row], self._texts.words
        return {("query", int(words[record.query])), ("positive", int(words[record.pos[positive]]))}


def _some(total: int, wanted: int, random: np.random.Generator) -> list[int]:
    """``wanted`` of ``total`` at random, each once more before any a third time; none of none."""
    result: list[int] = []
    while total and len(result) < wanted:
        result += random.permutation(total)[: wanted - len(result)].tolist()
    return result
