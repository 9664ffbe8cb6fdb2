"""A global batch -> packed rows under a token budget, and how to put their vectors back in order.

Queries and passages share rows, longest first, so equally long texts are neighbours. Every row is one pass of the
model.

This module knows nothing about models, devices or losses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gritkit.batch import Batch, pack, rows_of
from gritkit.data.mixing import MixedBatch


@dataclass(frozen=True)
class Contrast:
    """What the contrastive loss must know beside the vectors. Q queries, P passages, the first Q of them the
    positives."""

    num_queries: int
    owner_P: Tensor
    query_words_Q: Tensor
    passage_words_P: Tensor


@dataclass(frozen=True)
class PackedBatch:
    """One step's work."""

    embed_rows: list[Batch]
    restore: Tensor
    """Place of each text (queries, then passages) among the vectors of the rows, one row after the other."""
    contrast: Contrast | None
    next_token_rows: list[Batch]
    num_targets: int
    """Next-token targets in all rows: what their summed loss is divided by."""
    num_tokens: int
    """Tokens that the model reads in this step."""


def pack_batch(mixed: MixedBatch, budget: int) -> PackedBatch:
    """Rows of at most ``budget`` tokens (a longer text gets a row of its own)."""
    contrastive = mixed.contrastive
    texts = [*contrastive.queries, *contrastive.passages] if contrastive else []
    rows = rows_of([len(text) for text in texts], budget)
    restore = torch.empty(len(texts), dtype=torch.long)
    restore[[index for row in rows for index in row]] = torch.arange(len(texts))
    contrast = None
    if contrastive:
        contrast = Contrast(
            num_queries=len(contrastive.queries),
            owner_P=torch.tensor(contrastive.owners),
            query_words_Q=torch.tensor(contrastive.query_words),
            passage_words_P=torch.tensor(contrastive.passage_words),
        )
    examples = mixed.generative
    return PackedBatch(
        embed_rows=[pack([texts[i] for i in row]) for row in rows],
        restore=restore,
        contrast=contrast,
        next_token_rows=[
            pack([examples[i] for i in row]) for row in rows_of([len(example) for example in examples], budget)
        ],
        num_targets=sum(int(example.loss_mask.sum()) for example in examples),
        num_tokens=sum(map(len, texts)) + sum(map(len, examples)),
    )
