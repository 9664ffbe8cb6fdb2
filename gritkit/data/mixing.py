"""Which records go together: global batches of both halves, really shuffled, seeded, and resumable.

A contrastive batch comes from one source, so that its in-batch negatives are alike and the easy way to tell them
apart (by where they come from) is closed. By default every row is used once an epoch, and what is left of the sources
forms mixed batches; or each batch picks its source by given chances, and each source goes through its own rows.
Generative rows are drawn alongside, without regard to source. Each half goes through its own rows again and again,
shuffled anew every time, so sets of any relative size are used whole.

The order is a function of the seed alone; the state is a few numbers.

This module knows nothing about text, packing, devices or losses.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gritkit.data.batches import Choice, ContrastiveBatch, MixedBatch, Pool
from gritkit.data.sampling import Lottery, Sampling, Turns, generator, probabilities
from gritkit.data.sources import named
from gritkit.data.tokenised import TokenisedData
from gritkit.errors import InputError
from gritkit.tokens import TokenSeq


@dataclass(frozen=True)
class Draft:
    """A batch that is decided but not put together."""

    pool: Pool
    choices: list[Choice]
    place: tuple[int, ...]
    """Tells it from all others of the run."""


class BatchStream:
    """An endless stream of global batches, whose place in it can be saved and restored."""

    steps_per_epoch: int | None
    """Steps until every row of both halves was used; None where how many there are is not known."""

    def __init__(
        self,
        contrastive: Lottery[Draft],
        generative: Lottery[TokenSeq],
        *,
        num_generative: int,
        num_hard_negatives: int,
        seed: int,
        made_from: Mapping[str, Any],
    ) -> None:
        self._contrastive, self._generative = contrastive, generative
        self._num_generative, self._num_hard, self._seed = num_generative, num_hard_negatives, seed
        self._made_from = {
            **made_from,
            "generative_batch_size": num_generative,
            "num_hard_negatives": num_hard_negatives,
            "seed": seed,
        }

    def __iter__(self) -> Iterator[MixedBatch]:
        while True:
            yield self.draw()

    def draw(self) -> MixedBatch:
        """The next global batch."""
        examples = [self._generative.draw() for _ in range(self._num_generative)]
        return MixedBatch(self._draw_contrastive(), examples)

    def _draw_contrastive(self) -> ContrastiveBatch | None:
        if not self._contrastive:
            return None
        draft = self._contrastive.draw()
        return draft.pool.batch(draft.choices, self._num_hard, generator(self._seed, "negatives", *draft.place))

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, and what it was made from; fit for JSON."""
        return {
            "contrastive": self._contrastive.state_dict(),
            "generative": self._generative.state_dict(),
            "made_from": self._made_from,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was taken. Raises InputError when it is of other data, sizes or another seed."""
        before = state["made_from"]
        for name in {**before, **self._made_from}:
            if before.get(name) != self._made_from.get(name):
                raise InputError(
                    f"cannot resume with other batches: {name} was {before.get(name)} and is "
                    f"{self._made_from.get(name)}; resume with the same data and settings, or start anew from the "
                    "saved model"
                )
        self._contrastive.load_state_dict(state["contrastive"])
        self._generative.load_state_dict(state["generative"])


class Mixer(BatchStream):
    """Batches of a training set that is in memory.

    ``no_in_batch_negatives``: sources whose queries meet only their own passages, by name. ``sampling``: which source
    a contrastive batch is of, see :data:`Sampling`.

    Raises:
        InputError: for a batch size below 1, no data, a source that there is not, or impossible weights.
    """

    def __init__(
        self,
        data: TokenisedData,
        *,
        embedding_batch_size: int,
        generative_batch_size: int,
        num_hard_negatives: int = 1,
        no_in_batch_negatives: Iterable[str] = (),
        sampling: Sampling = "proportional",
        seed: int = 0,
    ) -> None:
        check_sizes(embedding_batch_size, generative_batch_size, num_hard_negatives)
        if not data.num_embedding and not data.generative:
            raise InputError("there are no records to train on")
        names = [name for name, rows in data.embedding if rows]
        sizes = [len(rows) for _, rows in data.embedding if rows]
        alone = alone_sources(no_in_batch_negatives, names)
        for name, rows in data.embedding:
            if name in alone and not any(row.neg for row in rows):
                raise InputError(
                    f"{name} has no in-batch negatives and its records no neg: there is nothing to tell apart"
                )
        pool = Pool(data, embedding_batch_size, alone)
        groups = [pool.parts] if names else []
        chances = [1.0] * len(groups)
        if sampling != "proportional" and groups:
            groups, chances = [[part] for part in pool.parts if part], probabilities(sampling, names, sizes).tolist()
        turns = [
            Turns(_Epochs(pool, parts, seed, (number,) if sampling != "proportional" else ()))
            for number, parts in enumerate(groups)
        ]
        num_generative = min(generative_batch_size, len(data.generative))
        examples = [Turns(_Shuffled(data.generative, seed))] if num_generative else []
        super().__init__(
            Lottery(turns, chances, seed, "source"),
            Lottery(examples, [1.0], seed, "generative source"),
            num_generative=num_generative,
            num_hard_negatives=num_hard_negatives,
            seed=seed,
            made_from={
                "sources": [[name, size] for name, size in zip(names, sizes, strict=True)],
                "num_generative": len(data.generative),
                "num_tokens": sum(
                    len(text) for texts in (data.texts.sequences, data.generative, data.answers) for text in texts
                ),
                "embedding_batch_size": embedding_batch_size,
                "no_in_batch_negatives": sorted(alone),
                "sampling": "proportional" if sampling == "proportional" else chances,
            },
        )
        if sampling == "proportional":
            contrastive_steps = sum(len(drafts.items) for drafts in turns)
        else:
            drawn = sum(size for size, chance in zip(sizes, chances, strict=True) if chance)
            contrastive_steps = math.ceil(drawn / embedding_batch_size)
        generative_steps = math.ceil(len(data.generative) / num_generative) if num_generative else 0
        self.steps_per_epoch = max(contrastive_steps, generative_steps)
        """Steps until every row of both halves was used at least once; where sources are drawn at random, until as many
        rows were as the sources have."""


@dataclass(frozen=True)
class _Epochs:
    """Every row of some sources, once a cycle."""

    pool: Pool
    parts: Sequence[range]
    seed: int
    place: tuple[int, ...]

    def __call__(self, cycle: int, block: int) -> list[Draft]:
        if block:
            return []
        drafts = self.pool.drafts(self.parts, generator(self.seed, "embedding", cycle, *self.place))
        return [Draft(self.pool, choices, (cycle, number, *self.place)) for number, choices in enumerate(drafts)]


@dataclass(frozen=True)
class _Shuffled:
    """Every example, once a cycle."""

    examples: Sequence[TokenSeq]
    seed: int

    def __call__(self, cycle: int, block: int) -> Sequence[TokenSeq]:
        if block:
            return ()
        order = generator(self.seed, "generative", cycle).permutation(len(self.examples))
        return [self.examples[i] for i in order.tolist()]


def check_sizes(embedding_batch_size: int, generative_batch_size: int, num_hard_negatives: int) -> None:
    """Raises InputError for a value that cannot be."""
    for name, value, least in (
        ("embedding_batch_size", embedding_batch_size, 1),
        ("generative_batch_size", generative_batch_size, 1),
        ("num_hard_negatives", num_hard_negatives, 0),
    ):
        if value < least:
            raise InputError(f"{name}={value} must be at least {least}")


def alone_sources(given: Iterable[str], sources: Collection[str]) -> set[str]:
    """The sources without in-batch negatives, in full. Raises InputError for a name that none has."""
    if isinstance(given, str):
        raise InputError(f"no_in_batch_negatives is a list of names, not the name {given!r} alone")
    return {source for name in given for source in named(name, sources)}
