"""Global batches of a training set larger than memory, each process drawing its own share of them.

Each batch picks its source at random, the same in every process; each source is read block after block and cycle after
cycle. A block of records is tokenised at once and permuted by (seed, cycle, block), so batches are functions of one
block: to resume, one block is read again. Rows are mixed within their blocks: where the records of a file are sorted,
shuffle the file or take large blocks.

This module knows nothing about file formats, packing, devices or losses.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from gritkit.data.batches import Pool
from gritkit.data.mixing import BatchStream, Draft, alone_sources, check_sizes
from gritkit.data.records import Kind
from gritkit.data.sampling import Lottery, Turns, generator, probabilities
from gritkit.data.sources import Problems, named
from gritkit.data.streams import OUTCOME, Blocks, StreamData, open_streams
from gritkit.data.tokenised import Lengths, TokenisedData, tokenise
from gritkit.errors import InputError
from gritkit.tokens import Tokens, TokenSeq


class StreamMixer(BatchStream):
    """Batches of records that are read while training.

    Process ``rank`` of ``world_size`` draws its share of each global batch from its share of the records; no text is
    twice in a share, though it may be in two. ``sampling``: weights of sources by name; a half of which none is named
    is drawn in equal parts. ``block_size``: records of each source in memory (more, to make whole batches); every file
    is a source, so a folder of many takes as many blocks.

    Raises:
        RecordError: for a first record that cannot be used; later ones raise it when they are drawn.
        InputError: for batch sizes that the processes cannot share, a source that there is not, or impossible weights.
    """

    steps_per_epoch: None = None
    """How many records there are is not known."""

    def __init__(
        self,
        data: StreamData,
        tokens: Tokens,
        lengths: Lengths,
        *,
        embedding_batch_size: int,
        generative_batch_size: int,
        num_hard_negatives: int = 1,
        no_in_batch_negatives: Iterable[str] = (),
        sampling: Mapping[str, float] | None = None,
        block_size: int = 8192,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        check_sizes(embedding_batch_size, generative_batch_size, num_hard_negatives)
        if block_size < 1:
            raise InputError(f"block_size={block_size} must be at least 1")
        if sampling is not None and not isinstance(sampling, Mapping):
            raise InputError(f"sampling={sampling!r}: how large streams are is not known, give weights by name")
        streams = open_streams(data)
        self.kinds: frozenset[Kind] = frozenset(stream.kind for stream in streams)
        """Kinds of records that there are."""
        share = {"embedding": embedding_batch_size, "generative": generative_batch_size}
        for kind in self.kinds:
            if share[kind] % world_size:
                raise InputError(f"{kind}_batch_size={share[kind]} cannot be shared evenly by {world_size} processes")
            share[kind] //= world_size
        names = [stream.name for stream in streams]
        reader = _Reader(tokens, lengths, seed, rank)
        alone = alone_sources(no_in_batch_negatives, [stream.name for stream in streams if stream.kind == "embedding"])
        drafts: list[Turns[Draft]] = []
        examples: list[Turns[TokenSeq]] = []
        chances = {kind: _chances(sampling, [s.name for s in streams if s.kind == kind], names) for kind in share}
        for number, stream in enumerate(streams):
            whole_batches = math.ceil(block_size / share[stream.kind]) * share[stream.kind]
            blocks = Blocks(stream, whole_batches, rank, world_size)
            if stream.kind == "embedding":
                drafts.append(Turns(_BlockDrafts(reader, blocks, number, share["embedding"], alone)))
            else:
                examples.append(Turns(_BlockExamples(reader, blocks, number)))
        super().__init__(
            Lottery(drafts, chances["embedding"], seed, "source"),
            Lottery(examples, chances["generative"], seed, "generative source"),
            num_generative=share["generative"] if examples else 0,
            num_hard_negatives=num_hard_negatives,
            seed=seed,
            made_from={
                "sources": [[stream.name, stream.kind, stream.num_bytes] for stream in streams],
                "embedding_batch_size": embedding_batch_size,
                "no_in_batch_negatives": sorted(alone),
                "sampling": chances,
                "block_size": block_size,
                "rank": rank,
                "world_size": world_size,
            },
        )


def _chances(sampling: Mapping[str, float] | None, names: Sequence[str], all_names: Sequence[str]) -> list[float]:
    """Of the sources of one half."""
    own = {
        name: weight for name, weight in (sampling or {}).items() if not set(names).isdisjoint(named(name, all_names))
    }
    if not names:
        return []
    chances: list[float] = probabilities(own or 0.0, names, [1] * len(names)).tolist()
    return chances


@dataclass(frozen=True)
class _Reader:
    """Blocks -> tokens, and the random streams of their rows."""

    tokens: Tokens
    lengths: Lengths
    seed: int
    rank: int

    def __call__(self, blocks: Blocks, cycle: int, block: int) -> TokenisedData:
        """A block in tokens; nothing, past the last."""
        return tokenise(blocks.read(cycle, block), self.tokens, self.lengths, problems=Problems(OUTCOME))


@dataclass(frozen=True)
class _BlockDrafts:
    """Every row of a block once, and those once more that fill its last batches."""

    reader: _Reader
    blocks: Blocks
    number: int
    size: int
    alone: Collection[str]

    def __call__(self, cycle: int, block: int) -> list[Draft]:
        pool = Pool(self.reader(self.blocks, cycle, block), self.size, self.alone)
        place = (cycle, block, self.number, self.reader.rank)
        drafts = pool.drafts(pool.parts, generator(self.reader.seed, "embedding", *place))
        return [Draft(pool, choices, (number, *place)) for number, choices in enumerate(drafts)]


@dataclass(frozen=True)
class _BlockExamples:
    """Every example of a block once."""

    reader: _Reader
    blocks: Blocks
    number: int

    def __call__(self, cycle: int, block: int) -> list[TokenSeq]:
        examples = self.reader(self.blocks, cycle, block).generative
        random = generator(self.reader.seed, "generative", cycle, block, self.number, self.reader.rank)
        return [examples[i] for i in random.permutation(len(examples)).tolist()]
