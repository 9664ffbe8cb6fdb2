"""Token sequences -> vectors, and in the same pass the key-values of what was read.

This module knows nothing about text, prompts or files; sequences come in with their masks and leave as vectors in the
same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gritkit.backbone import Backbone
from gritkit.batch import Batch, pack, rows_of
from gritkit.config import EmbeddingConfig, Pooling
from gritkit.kv.dockv import DocKV
from gritkit.plan import Plan, Segment, WindowRule
from gritkit.pooling import pool, unit
from gritkit.rope import Rope
from gritkit.tokens import TokenSeq

Progress = Callable[[int], None]
"""Called with the number of sequences just finished."""


def batch_plan(batch: Batch, config: EmbeddingConfig, **rest: Any) -> Plan:
    """The plan of a row: texts each alone, by the checkpoint's attention and window rule; answers causal over what
    they read."""
    rule: WindowRule = config.embedding_window
    causal = config.embedding_attention == "causal"
    ends = batch.lengths_S.cumsum(0).tolist()
    segments = zip([0, *ends], ends, batch.reads_S, strict=False)
    return Plan(tuple(Segment(a, b, causal or bool(reads), reads) for a, b, reads in segments), rule, **rest)


def pool_texts(hidden_TH: Tensor, batch: Batch, pooling: Pooling) -> Tensor:
    """Pooled vectors [S, H] of the row's texts, at least fp32, not normalised; answers are left out."""
    lengths_S, mask_T = batch.lengths_S, batch.pool_mask_T
    if any(batch.reads_S):
        text_S = torch.tensor([not reads for reads in batch.reads_S])
        text_T = text_S.repeat_interleave(lengths_S).nonzero()[:, 0].to(hidden_TH.device)
        hidden_TH, mask_T, lengths_S = hidden_TH[text_T], mask_T[text_T], lengths_S[text_S]
    return pool(hidden_TH, lengths_S.to(hidden_TH.device), mask_T, pooling)


def embed_row(backbone: Backbone, batch: Batch, config: EmbeddingConfig, *, layers: int | None = None) -> Tensor:
    """One packed row -> pooled vectors [S, H], at least fp32, not normalised; gradients flow."""
    hidden_TH = backbone.hidden(batch.ids_T, batch.positions_T, batch_plan(batch, config), layers=layers)
    return pool_texts(hidden_TH, batch, config.pooling)


@torch.inference_mode()
def embed_sequences(
    backbone: Backbone,
    sequences: Sequence[TokenSeq],
    config: EmbeddingConfig,
    *,
    budget: int,
    dim: int | None = None,
    layers: int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Unit vectors [n, dim or H], fp32 on the CPU, in the order of the sequences; from the first ``layers`` layers."""
    vectors = torch.empty(len(sequences), dim or backbone.hidden_size)
    for row in rows_of([len(sequence) for sequence in sequences], budget):
        batch = pack([sequences[i] for i in row]).to(backbone.device)
        vectors[row] = unit(embed_row(backbone, batch, config, layers=layers)[:, :dim]).float().cpu()
        if progress is not None:
            progress(len(row))
    return vectors


def kept_tokens(length: int, window: int | None) -> int:
    """How many of a document's last tokens a layer keeps: what follows sees keys in (query - window, query]."""
    return length if window is None else min(length, window - 1)


def num_prompt(sequence: TokenSeq) -> int:
    """Leading tokens that are not the text's own: beginning of text and prompt format."""
    return int(sequence.pool_mask.argmax())


@torch.inference_mode()
def read_sequences(
    backbone: Backbone,
    rope: Rope,
    sequences: Sequence[TokenSeq],
    config: EmbeddingConfig,
    *,
    budget: int,
    num_bos: int,
    dim: int | None = None,
    progress: Progress | None = None,
) -> tuple[Tensor, list[DocKV]]:
    """Unit vectors as :func:`embed_sequences`, and the DocKV of every sequence on the CPU, from one forward each."""
    vectors = torch.empty(len(sequences), dim or backbone.hidden_size)
    documents: list[DocKV | None] = [None] * len(sequences)
    for row in rows_of([len(sequence) for sequence in sequences], budget):
        batch = pack([sequences[i] for i in row]).to(backbone.device)
        hidden_TH, kept = backbone.read(
            batch.ids_T, batch.positions_T, lambda hook, batch=batch: batch_plan(batch, config, key_hook=hook), rope
        )
        vectors[row] = unit(pool_texts(hidden_TH, batch, config.pooling)[:, :dim]).float().cpu()
        layers = [tuple(x[0].cpu() for x in kept[layer]) for layer in range(backbone.num_layers)]
        end = 0
        for index, length in zip(row, batch.lengths_S.tolist(), strict=True):
            end += length
            starts = [end - kept_tokens(length, window) for window in backbone.windows]
            # clone: a view would keep the whole row's memory alive for one document
            keys, values = (
                tuple(layer[side][:, start:end].clone() for layer, start in zip(layers, starts, strict=True))
                for side in (0, 1)
            )
            sequence = sequences[index]
            documents[index] = DocKV(tuple(sequence.ids.tolist()), num_bos, num_prompt(sequence), keys, values)
        if progress is not None:
            progress(len(row))
    return vectors, [document for document in documents if document is not None]
