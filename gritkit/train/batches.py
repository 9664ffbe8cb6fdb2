"""What a run reads: its data in the model's tokens, the stream of global batches, and this process's packed share.

This module knows nothing about steps, losses or the Trainer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Generator, Iterator
from dataclasses import dataclass
from typing import Any, cast

from tqdm.auto import tqdm

from gritkit.data import (
    Data,
    Lengths,
    MixedBatch,
    Mixer,
    PackedBatch,
    TokenisedData,
    load,
    pack_batch,
    share_of,
    tokenise,
)
from gritkit.data.mixing import BatchStream
from gritkit.data.packing import Shares
from gritkit.data.prefetch import Prefetched
from gritkit.data.sampling import Sampling
from gritkit.data.stream_mixing import StreamMixer
from gritkit.data.streams import StreamData
from gritkit.errors import InputError
from gritkit.model import GritModel
from gritkit.train.config import TrainConfig
from gritkit.train.evaluation import HeldOut, Likelihoods, load_held_out
from gritkit.train.world import World

_DEFAULT_LENGTHS = {"query": 256, "passage": 2048, "generative": 2048}  # the paper's


class PackedBatches:
    """An endless iterable of packed batches. Not a DataLoader, so accelerate neither dispatches nor slices it."""

    def __init__(self, mixer: BatchStream, prepare: Callable[[MixedBatch], PackedBatch], workers: int) -> None:
        self._mixer, self._prepare, self._workers = mixer, prepare, workers
        self.state = mixer.state_dict()
        """Where the mixer stood when it had drawn the newest batch that was handed out."""
        self._running: Generator[PackedBatch, None, None] | None = None

    def __iter__(self) -> Iterator[PackedBatch]:
        self.close()
        self._running = self._packed()
        return self._running

    def close(self) -> None:
        """End what prepares batches ahead."""
        if self._running is not None:
            self._running.close()

    def _packed(self) -> Generator[PackedBatch, None, None]:
        def draw() -> tuple[MixedBatch, dict[str, Any]]:
            return self._mixer.draw(), self._mixer.state_dict()

        with Prefetched(draw, self._prepare, workers=self._workers, depth=self._workers + 1) as ready:
            for packed, self.state in ready:
                yield packed


@dataclass(frozen=True)
class Packing:
    """A global batch -> this process's packed share of it."""

    shares: Shares
    """How the next-token loss weighs examples."""
    num_bos: int
    context_length: int
    place: tuple[int, int]
    """This process and how many there are to share the batch; (0, 1) where it is this one's share already."""
    budget: int

    def __call__(self, mixed: MixedBatch) -> PackedBatch:
        share = share_of(mixed, self.shares, *self.place)
        packed = pack_batch(share, self.budget, self.num_bos)
        longest = max((int(row.positions_T.max()) + 1 for row in packed.read_rows), default=0)
        if longest > self.context_length:
            raise InputError(_too_long(longest, self.context_length))
        return packed


def _too_long(longest: int, context_length: int) -> str:
    return (
        f"an answer and the documents that it reads take {longest} tokens, the model's context is {context_length}: "
        "lower passage_max_length or num_hard_negatives"
    )


def batches_of(model: GritModel, config: TrainConfig, data: Data, world: World) -> tuple[BatchStream, bool]:
    """The stream of batches that the settings ask for, and whether anything is generated in them.

    In memory every process draws the whole batch; of a stream, its own share.
    """
    sizes: dict[str, Any] = {
        "embedding_batch_size": config.embedding_batch_size,
        "generative_batch_size": config.generative_batch_size,
        "num_hard_negatives": config.num_hard_negatives,
        "seed": config.seed if config.data_seed is None else config.data_seed,
    }
    if config.streaming:
        weights = None if config.sampling == "proportional" else cast("dict[str, float]", config.sampling)
        stream = StreamMixer(
            cast(StreamData, data),
            model.tokens,
            lengths_for(model, config),
            no_in_batch_negatives=config.no_in_batch_negatives,
            sampling=weights,
            rank=world.rank,
            world_size=world.size,
            **sizes,
        )
        _check_writes(model, stream.kinds)
        return stream, True  # any record may have an answer
    tokenised = tokenised_for(model, config, data)
    longest = _longest_reading(tokenised, config.num_hard_negatives)
    if longest > model.context_length:
        raise InputError(_too_long(longest, model.context_length))
    names = [name for name, _ in tokenised.embedding]
    alone = config.no_in_batch_negatives if config.in_batch_negatives else names
    sampling = cast(Sampling, config.sampling)
    mixer = Mixer(tokenised, no_in_batch_negatives=alone, sampling=sampling, **sizes)
    return mixer, bool(tokenised.generative or tokenised.answers)


def _longest_reading(data: TokenisedData, num_hard_negatives: int) -> int:
    """Tokens that an answer may take together with its documents."""
    size = [len(text) for text in data.texts.sequences]
    answered = [row for _, rows in data.embedding for row in rows if row.answer is not None]
    return max(
        (
            max(size[i] for i in row.pos)
            + num_hard_negatives * max((size[i] for i in row.neg), default=0)
            + len(data.answers[cast(int, row.answer)])
            for row in answered
        ),
        default=0,
    )


def held_out_of(model: GritModel, config: TrainConfig, data: Data) -> HeldOut:
    """What the run is measured on, cut to its lengths."""
    held_out = load_held_out(data, model.tokens, lengths_for(model, config))
    _check_writes(model, {"generative" for one in held_out if isinstance(one, Likelihoods)})
    return held_out


def tokenised_for(model: GritModel, config: TrainConfig, data: Data) -> TokenisedData:
    """The training set in the model's tokens, cut to the run's lengths."""
    sources = load(data)
    _check_writes(model, {source.kind for source in sources})
    lengths = lengths_for(model, config)
    total = sum(len(source.records) for source in sources)
    with tqdm(total=total, desc="tokenising", unit=" records", disable=bool(config.disable_tqdm)) as bar:
        return tokenise(sources, model.tokens, lengths, bar.update)


def lengths_for(model: GritModel, config: TrainConfig) -> Lengths:
    """The run's lengths. Raises InputError for one beyond the model's context."""
    lengths = {}
    for kind, default in _DEFAULT_LENGTHS.items():
        given = getattr(config, f"{kind}_max_length")
        if given is not None and given > model.context_length:
            raise InputError(
                f"{kind}_max_length={given} is beyond the model's context of {model.context_length} tokens"
            )
        lengths[kind] = min(given or default, model.context_length)
    return Lengths(**lengths)


def steps_of(config: TrainConfig, mixer: BatchStream) -> int:
    if mixer.steps_per_epoch is None:
        raise InputError("how long a stream is is not known: set max_steps")
    return math.ceil(config.num_train_epochs * mixer.steps_per_epoch)


def _check_writes(model: GritModel, kinds: Collection[str]) -> None:
    if "generative" in kinds and not model.writes:
        raise InputError("this checkpoint has no language-model head: generative records cannot train or measure it")
