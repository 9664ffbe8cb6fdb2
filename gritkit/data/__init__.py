"""Training data: records -> sources -> tokens -> global batches -> packed rows.

    load(path | hub id | records) -> Source[EmbeddingRecord | GenerativeRecord]     typed; all bad records in one report
    tokenise(sources, tokens, lengths) -> TokenisedData                             masks decided here, once
    Mixer(data, ...) -> MixedBatch                                                  shuffled, seeded, resumable
    pack_batch(mixed, budget) -> PackedBatch                                        one row is one pass of the model

This package knows nothing about models, losses or training loops.
"""

from gritkit.data.batches import ContrastiveBatch, MixedBatch
from gritkit.data.mixing import Mixer
from gritkit.data.packing import Contrast, PackedBatch, Share, pack_batch, share_of
from gritkit.data.reading import Data, load
from gritkit.data.records import EmbeddingRecord, GenerativeRecord, Text, parse_record
from gritkit.data.sources import Source
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
    "Share",
    "Source",
    "Text",
    "TokenisedData",
    "load",
    "pack_batch",
    "parse_record",
    "share_of",
    "tokenise",
]
