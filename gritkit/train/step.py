"""The unified step: one global batch -> both losses and their gradients.

    total = embedding_weight * contrastive / queries  +  generative_weight * next_token / targets

Every pass goes through the root model, ``model(task, row)``, which is what DDP and FSDP wrap. The next-token rows come
first and give their gradients at once (a sum needs no other row); the contrastive loss needs all vectors together.

This module knows nothing about optimizers, data on disk or logging.

Shapes: N texts (queries, then passages), Q queries, H vector size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gritkit.data import PackedBatch
from gritkit.errors import InputError
from gritkit.losses import InfoNCE, NextToken


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is minimised."""

    contrastive: InfoNCE
    next_token: NextToken
    embedding_weight: float = 1.0
    generative_weight: float = 1.0


@dataclass(frozen=True)
class StepLosses:
    """The losses of one step; a half that the batch does not have is None."""

    total: Tensor
    contrastive: Tensor | None
    next_token: Tensor | None


def unified_step(
    model: nn.Module, batch: PackedBatch, objective: Objective, backward: Callable[[Tensor], None] | None = None
) -> StepLosses:
    """Losses of a batch. With ``backward``, gradients are accumulated part by part and what returns is detached.

    Without it, the total carries the graph of the whole step. Both give the same gradients.
    """
    total: Tensor | None = None
    next_token: Tensor | None = None
    contrastive: Tensor | None = None

    def add(part: Tensor, weight: float) -> Tensor:
        nonlocal total
        weighted = weight * part
        if backward is not None:
            backward(weighted)
            part, weighted = part.detach(), weighted.detach()
        total = weighted if total is None else total + weighted
        return part

    for row in batch.next_token_rows:
        part = add(objective.next_token(model("next_token", row), batch.num_targets), objective.generative_weight)
        next_token = part if next_token is None else next_token + part
    if batch.contrast is not None:
        contrastive = add(contrastive_loss(model, batch, objective.contrastive), objective.embedding_weight)
    if total is None:
        raise InputError("an empty batch: there is nothing to train on")
    return StepLosses(total, contrastive, next_token)


def contrastive_loss(model: nn.Module, batch: PackedBatch, loss: InfoNCE) -> Tensor:
    """The mean contrastive loss over the batch's queries, with the graph of all its rows."""
    contrast = batch.contrast
    assert contrast is not None
    vectors = torch.cat([model("embed", row) for row in batch.embed_rows])
    device = vectors.device
    vectors_NH = vectors[batch.restore.to(device)]
    summed: Tensor = loss(
        vectors_NH[: contrast.num_queries],
        vectors_NH[contrast.num_queries :],
        owner_P=contrast.owner_P.to(device),
        query_words_Q=contrast.query_words_Q.to(device),
        passage_words_P=contrast.passage_words_P.to(device),
    )
    return summed / contrast.num_queries
