"""InfoNCE: a query's positive against everything else in the batch.

Queries may be given in blocks: each block meets all passages, so the similarity matrix of a large batch never exists
whole, and a device may hold the queries of its own share only.

This module knows nothing about where vectors come from or how many devices made them.

Shapes: Q queries of a block, P passages (positives and hard negatives of all queries), H vector size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gritkit.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a block of queries must know to tell negatives from what only looks like one."""

    positive_Q: Tensor
    """Place of each query's positive among the passages."""
    number_Q: Tensor
    """Each query's number in the whole batch."""
    words_Q: Tensor
    """Ids that are equal where the words of queries are."""
    alone_Q: Tensor
    """True where a query meets only the passages that it was given with."""

    def to(self, device: torch.device) -> Asked:
        return Asked(**{name: value.to(device) for name, value in vars(self).items()})

    def block(self, start: int, end: int) -> Asked:
        """The queries from ``start`` to ``end`` (exclusive)."""
        return Asked(**{name: value[start:end] for name, value in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Offered:
    """What is known of all passages of the batch."""

    owner_P: Tensor
    """Number of the query that each passage was given with."""
    words_P: Tensor
    """Ids that are equal where the words of passages are."""
    asked_words_P: Tensor
    """For positives the words' id of their query, for others an id that no query has (-1)."""

    def to(self, device: torch.device) -> Offered:
        return Offered(**{name: value.to(device) for name, value in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class InfoNCE:
    """Cross-entropy of picking the positive, by similarity over temperature (van den Oord et al. 2018, 1807.03748).

    Inputs: unit vectors of a block of queries [Q, H] and of all passages [P, H], the place of each query's positive,
    and which passages are no negatives of which query.

    Formula: sum_i -log( exp(q_i.p_i+ / t) / sum_{j in N(i)} exp(q_i.p_j / t) ), N(i) all passages but the excluded
    ones; from queries to passages only, as in GRIT (Muennighoff et al. 2024, arXiv 2402.09906, eq. 1). Computed in at
    least fp32, whatever autocast says. The sum is over the block's queries; divide by the number of all.

    When to use: pairs or triples of texts, the more in a batch the better. Where a source's records are paraphrases of
    one another, let its queries stay ``alone``: each then meets its own hard negatives only.
    """

    temperature: float = 0.02
    """What similarities are divided by; smaller looks at the hardest negatives only."""
    mask_same_text: bool = True
    """Whether passages that read like the query or its positive, and positives of queries that read like it, are left
    out."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(f"temperature={self.temperature} must be above 0")

    def __call__(
        self, queries_QH: Tensor, passages_PH: Tensor, positive_Q: Tensor, excluded_QP: Tensor | None = None
    ) -> Tensor:
        """The summed loss over the block, a scalar."""
        dtype = torch.promote_types(torch.promote_types(queries_QH.dtype, passages_PH.dtype), torch.float32)
        with torch.autocast(queries_QH.device.type, enabled=False):
            logits_QP = queries_QH.to(dtype) @ passages_PH.to(dtype).T / self.temperature
        if excluded_QP is not None:
            logits_QP = logits_QP.masked_fill(excluded_QP, -torch.inf)
        return cross_entropy(logits_QP, positive_Q, reduction="sum")

    def excluded(self, asked: Asked, offered: Offered) -> Tensor:
        """Where a passage is neither the query's positive nor a negative of it, boolean [Q, P]."""
        excluded_QP = asked.alone_Q[:, None] & (offered.owner_P != asked.number_Q[:, None])
        if self.mask_same_text:
            excluded_QP |= self.false_negatives(asked, offered)
        return excluded_QP.scatter(1, asked.positive_Q[:, None], False)

    def false_negatives(self, asked: Asked, offered: Offered) -> Tensor:
        """Where a passage other than the positive reads like it or like the query, or answers one that reads alike,
        [Q, P]."""
        same_QP = offered.words_P == offered.words_P[asked.positive_Q][:, None]
        same_QP |= offered.words_P == asked.words_Q[:, None]
        same_QP |= offered.asked_words_P == asked.words_Q[:, None]
        return same_QP.scatter(1, asked.positive_Q[:, None], False)
