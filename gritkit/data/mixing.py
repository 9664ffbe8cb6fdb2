"""Which records go together: global batches of both halves, really shuffled, seeded, and resumable.

A contrastive batch comes from one source, so that its in-batch negatives are alike and the easy way to tell them
apart (by where they come from) is closed. What is left of the sources forms mixed batches at the end, the last of
them filled up with rows drawn anew. Within a batch no query and no positive occurs twice; a row that would repeat one
waits for the next batch. Generative rows are drawn alongside, without regard to source. Each half goes through its
own rows again and again, shuffled anew every time, so sets of any relative size are used whole.

An epoch's order is a function of (seed, epoch) alone; the state is three numbers.

This module knows nothing about text, packing, devices or losses.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gritkit.data.tokenised import EmbeddingRow, TokenisedData
from gritkit.errors import InputError
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
    """Ids that are equal where the words are; a passage equal to a query's positive is no negative of it."""


@dataclass(frozen=True)
class MixedBatch:
    """One step's global batch; either half may be absent."""

    contrastive: ContrastiveBatch | None
    generative: list[TokenSeq]


@dataclass(frozen=True)
class _Draft:
    """A batch that is decided but not put together: (source, row, positive) of each query."""

    source: str
    rows: list[tuple[int, int, int]]


class Mixer:
    """An endless stream of global batches, whose place in it can be saved and restored.

    Raises:
        InputError: for a batch size below 1, or no data.
    """

    def __init__(
        self,
        data: TokenisedData,
        *,
        embedding_batch_size: int,
        generative_batch_size: int,
        num_hard_negatives: int = 1,
        seed: int = 0,
    ) -> None:
        for name, value, least in (
            ("embedding_batch_size", embedding_batch_size, 1),
            ("generative_batch_size", generative_batch_size, 1),
            ("num_hard_negatives", num_hard_negatives, 0),
        ):
            if value < least:
                raise InputError(f"{name}={value} must be at least {least}")
        if not data.num_embedding and not data.generative:
            raise InputError("there are no records to train on")
        self._data = data
        self._size = embedding_batch_size
        self._num_generative = min(generative_batch_size, len(data.generative))
        self._num_hard = num_hard_negatives
        self._seed = seed
        self._epoch, self._place, self._drawn = 0, 0, 0
        self._drafts = self._epoch_drafts(0)
        self._cycle = -1
        self._order: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        generative_steps = math.ceil(len(data.generative) / self._num_generative) if self._num_generative else 0
        self.steps_per_epoch = max(len(self._drafts), generative_steps)
        """Steps until every row of both halves was used at least once."""

    def __iter__(self) -> Iterator[MixedBatch]:
        while True:
            yield self.draw()

    def draw(self) -> MixedBatch:
        """The next global batch."""
        return MixedBatch(self._draw_contrastive(), self._draw_generative())

    # -- state ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, and what it was made from."""
        return {"epoch": self._epoch, "place": self._place, "drawn": self._drawn, "made_from": self._made_from()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was taken. Raises InputError when it is of other data, sizes or another seed."""
        made_from = self._made_from()
        for name, value in state["made_from"].items():
            if made_from.get(name) != value:
                raise InputError(
                    f"cannot resume with other batches: {name} was {value} and is {made_from.get(name)}; "
                    "resume with the same data and settings, or start anew from the saved model"
                )
        if state["epoch"] != self._epoch:
            self._drafts = self._epoch_drafts(state["epoch"])
        self._epoch, self._place, self._drawn = state["epoch"], state["place"], state["drawn"]

    def _made_from(self) -> dict[str, Any]:
        return {
            "sources": [[name, len(rows)] for name, rows in self._data.embedding],
            "num_generative": len(self._data.generative),
            "num_tokens": sum(map(len, self._data.texts.sequences)) + sum(map(len, self._data.generative)),
            "embedding_batch_size": self._size,
            "generative_batch_size": self._num_generative,
            "num_hard_negatives": self._num_hard,
            "seed": self._seed,
        }

    # -- generative half -----------------------------------------------------------------------------------------

    def _draw_generative(self) -> list[TokenSeq]:
        result, total = [], len(self._data.generative)
        for _ in range(self._num_generative):
            cycle, place = divmod(self._drawn, total)
            if cycle != self._cycle:
                self._cycle, self._order = cycle, self._random("generative", cycle).permutation(total)
            result.append(self._data.generative[int(self._order[place])])
            self._drawn += 1
        return result

    # -- contrastive half ----------------------------------------------------------------------------------------

    def _draw_contrastive(self) -> ContrastiveBatch | None:
        if not self._drafts:
            return None
        if self._place == len(self._drafts):
            self._epoch, self._place = self._epoch + 1, 0
            self._drafts = self._epoch_drafts(self._epoch)
        batch = self._put_together(self._drafts[self._place], self._random("negatives", self._epoch, self._place))
        self._place += 1
        return batch

    def _put_together(self, draft: _Draft, random: np.random.Generator) -> ContrastiveBatch:
        rows = [self._row(source, row) for source, row, _ in draft.rows]
        passages = [row.pos[positive] for row, (_, _, positive) in zip(rows, draft.rows, strict=True)]
        owners = list(range(len(rows)))
        for owner, row in enumerate(rows):
            for place in _some(len(row.neg), self._num_hard, random):
                passages.append(row.neg[place])
                owners.append(owner)
        table = self._data.texts
        return ContrastiveBatch(
            source=draft.source,
            queries=[table.sequences[row.query] for row in rows],
            passages=[table.sequences[number] for number in passages],
            owners=owners,
            query_words=[int(table.words[row.query]) for row in rows],
            passage_words=[int(table.words[number]) for number in passages],
        )

    def _row(self, source: int, row: int) -> EmbeddingRow:
        return self._data.embedding[source][1][row]

    def _epoch_drafts(self, epoch: int) -> list[_Draft]:
        """All batches of an epoch: every row once, and those once more that fill the last batches."""
        random = self._random("embedding", epoch)
        drafts: list[_Draft] = []
        left: list[tuple[int, int]] = []
        for number, (name, rows) in enumerate(self._data.embedding):
            queue = deque((number, int(row)) for row in random.permutation(len(rows)))
            while len(queue) >= self._size:
                chosen = self._take(queue, random)
                if len(chosen) < self._size:
                    queue.extend((source, row) for source, row, _ in chosen)
                    break
                drafts.append(_Draft(name, chosen))
            left += queue
        queue = deque(left[i] for i in random.permutation(len(left)))
        while queue:
            chosen = self._take(queue, random)
            self._fill(chosen, random)
            sources = {source for source, _, _ in chosen}
            drafts.append(_Draft(self._data.embedding[sources.pop()][0] if len(sources) == 1 else "", chosen))
        return [drafts[i] for i in random.permutation(len(drafts))]

    def _take(self, queue: deque[tuple[int, int]], random: np.random.Generator) -> list[tuple[int, int, int]]:
        """Up to a batch of rows from the front of the queue that repeat nothing; those that would stay in front."""
        chosen: list[tuple[int, int, int]] = []
        seen: set[tuple[str, int]] = set()
        waiting = []
        looks = _LOOK * self._size
        while queue and len(chosen) < self._size and looks:
            source, row = queue.popleft()
            looks -= 1
            positive = self._fitting(source, row, seen, random)
            if positive is None:
                waiting.append((source, row))
            else:
                chosen.append((source, row, positive))
        queue.extendleft(reversed(waiting))
        return chosen

    def _fill(self, chosen: list[tuple[int, int, int]], random: np.random.Generator) -> None:
        """Bring a short batch to size with rows drawn anew from the sources that are in it, as far as they do not
        repeat."""
        seen: set[tuple[str, int]] = set()
        for source, row, positive in chosen:
            seen |= self._words(source, row, positive)
        sources = sorted({source for source, _, _ in chosen})
        pool = [(source, row) for source in sources for row in range(len(self._data.embedding[source][1]))]
        if len(chosen) == self._size or len(pool) <= len(chosen):
            return
        for place in random.permutation(len(pool))[: _LOOK * self._size]:
            source, row = pool[place]
            fitting = self._fitting(source, row, seen, random)
            if fitting is not None:
                chosen.append((source, row, fitting))
                if len(chosen) == self._size:
                    return

    def _fitting(self, source: int, row: int, seen: set[tuple[str, int]], random: np.random.Generator) -> int | None:
        """A random positive of the row that, like its query, is not in the batch yet (and is from now on); or None."""
        count = len(self._row(source, row).pos)
        for positive in random.permutation(count) if count > 1 else (0,):
            words = self._words(source, row, int(positive))
            if not words & seen:
                seen |= words
                return int(positive)
        return None

    def _words(self, source: int, row: int, positive: int) -> set[tuple[str, int]]:
        record, words = self._row(source, row), self._data.texts.words
        return {("query", int(words[record.query])), ("positive", int(words[record.pos[positive]]))}

    def _random(self, purpose: str, *numbers: int) -> np.random.Generator:
        """Independent streams for every purpose and place, so that none depends on how often another was used."""
        return np.random.default_rng([self._seed, *purpose.encode(), *numbers])


def _some(total: int, wanted: int, random: np.random.Generator) -> list[int]:
    """``wanted`` of ``total`` at random, each once more before any a third time; none of none."""
    result: list[int] = []
    while total and len(result) < wanted:
        result += random.permutation(total)[: wanted - len(result)].tolist()
    return result
