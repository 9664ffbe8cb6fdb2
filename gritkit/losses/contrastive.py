"""InfoNCE: a query's positive against everything else in the batch.

This module knows nothing about where vectors come from or how many devices made them.

Shapes: Q queries, P passages (positives and hard negatives of all queries), H vector size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gritkit.errors import InputError


@dataclass(frozen=True, kw_only=True)
class InfoNCE:
    """Cross-entropy of picking the positive, by similarity over temperature (van den Oord et al. 2018, 1807.03748).

    Inputs: unit vectors of queries [Q, H] and of passages [P, H], of which passage i < Q is query i's positive; and,
    for what is no negative, the query each passage was given with and ids of the words of queries and passages.

    Formula: sum_i -log( exp(q_i.p_i / t) / sum_{j in N(i)} exp(q_i.p_j / t) ), N(i) all passages but the excluded ones;
    from queries to passages only, as in GRIT (Muennighoff et al. 2024, arXiv 2402.09906, eq. 1). Computed in at least
    fp32, whatever autocast says. The sum is over queries; divide by their number.

    When to use: pairs or triples of texts, the more in a batch the better. Where one source's records are paraphrases
    of one another, switch ``in_batch_negatives`` off: each query then meets its own hard negatives only.
    """

    temperature: float = 0.02
    """What similarities are divided by; smaller looks at the hardest negatives only."""
    in_batch_negatives: bool = True
    """Whether a query meets the passages of other queries."""
    mask_same_text: bool = True
    """Whether passages that read like the query's positive, and positives of queries that read like it, are left
    out."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(f"temperature={self.temperature} must be above 0")

    def __call__(
        self,
        queries_QH: Tensor,
        passages_PH: Tensor,
        *,
        owner_P: Tensor | None = None,
        query_words_Q: Tensor | None = None,
        passage_words_P: Tensor | None = None,
    ) -> Tensor:
        """The summed loss over the queries, a scalar."""
        target_Q = torch.arange(len(queries_QH), device=queries_QH.device)
        return cross_entropy(
            self.logits(queries_QH, passages_PH, owner_P, query_words_Q, passage_words_P), target_Q, reduction="sum"
        )

    def logits(
        self,
        queries_QH: Tensor,
        passages_PH: Tensor,
        owner_P: Tensor | None = None,
        query_words_Q: Tensor | None = None,
        passage_words_P: Tensor | None = None,
    ) -> Tensor:
        """Similarities over temperature [Q, P], -inf where a passage is no negative of the query."""
        if len(passages_PH) < len(queries_QH):
            raise InputError(f"{len(queries_QH)} queries need as many positives; there are {len(passages_PH)} passages")
        dtype = torch.promote_types(torch.promote_types(queries_QH.dtype, passages_PH.dtype), torch.float32)
        with torch.autocast(queries_QH.device.type, enabled=False):
            logits_QP = queries_QH.to(dtype) @ passages_PH.to(dtype).T / self.temperature
        excluded_QP = self.excluded(len(queries_QH), owner_P, query_words_Q, passage_words_P)
        return logits_QP if excluded_QP is None else logits_QP.masked_fill(excluded_QP, -torch.inf)

    def excluded(
        self,
        num_queries: int,
        owner_P: Tensor | None = None,
        query_words_Q: Tensor | None = None,
        passage_words_P: Tensor | None = None,
    ) -> Tensor | None:
        """Where a passage is neither the query's positive nor a negative of it, [Q, P]; None where nothing is."""
        parts = []
        if not self.in_batch_negatives:
            if owner_P is None:
                raise InputError("in_batch_negatives=False needs owner_P: the query that each passage was given with")
            parts.append(owner_P[None] != torch.arange(num_queries, device=owner_P.device)[:, None])
        if self.mask_same_text and passage_words_P is not None:
            parts.append(passage_words_P[None] == passage_words_P[:num_queries, None])
        if self.mask_same_text and query_words_Q is not None and owner_P is not None:
            same_QQ = query_words_Q[None] == query_words_Q[:, None]
            parts.append(same_QQ[:, owner_P] & (torch.arange(len(owner_P), device=owner_P.device) < num_queries))
        if not parts:
            return None
        excluded_QP = torch.stack(parts).any(0)
        excluded_QP[:, :num_queries].fill_diagonal_(False)
        return excluded_QP
