"""Training data: records -> sources -> tokens -> global batches -> packed rows.

    load(path | hub id | records) -> Source[EmbeddingRecord | GenerativeRecord]     typed; all bad records in one report
    tokenise(sources, tokens, lengths) -> TokenisedData                             masks decided here, once
    Mixer(data, ...) -> MixedBatch                                                  shuffled, seeded, resumable
    StreamMixer(path | hub id, tokens, lengths, ...) -> MixedBatch                  the same, of data larger than memory
    share_of(mixed, shares, rank, world_size) -> Share                              what one process does of it
    pack_batch(share, budget) -> PackedBatch                                        one row is one pass of the model

This package knows nothing about models, losses or training loops.
"""

from gritkit.data.batches import ContrastiveBatch, MixedBatch
from gritkit.data.mixing import Mixer
from gritkit.data.packing import Contrast, PackedBatch, Share, pack_batch, share_of
from gritkit.data.prefetch import Prefetched
from gritkit.data.reading import Data, load
from gritkit.data.records import EmbeddingRecord, GenerativeRecord, Text, parse_record
from gritkit.data.sampling import Sampling
from gritkit.data.sources import Source
from gritkit.data.stream_mixing import StreamMixer
from gritkit.data.streams import Stream, StreamData, open_streams
from gritkit.data.tokenised import Lengths, TokenisedData, tokenise

__all__ = [
    "Contrast",
    "ContrastiveBatch",
    "Data",
    "EmbeddingRecord",
    "GenerativeRecord",
    "Lengths",
    "MixedBatch",
    "Mixer",
    "PackedBatch",
    "Prefetched",
    "Sampling",
    "Share",
    "Source",
    "Stream",
    "StreamData",
    "StreamMixer",
    "Text",
    "TokenisedData",
    "load",
    "open_streams",
    "pack_batch",
    "parse_record",
    "share_of",
    "tokenise",
]
