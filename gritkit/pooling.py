"""Hidden states of a packed row -> one vector a text, over the tokens that the tokenizer side marked as text.

Sums run in at least fp32 whatever the model's dtype. The mask is decided once (``gritkit.tokens``) and never edited.

This module knows nothing about prompts, instructions or models.

Shapes: T tokens of the row, S sequences, H hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from gritkit.config import Pooling


def pool(hidden_TH: Tensor, lengths_S: Tensor, pool_mask_T: Tensor, pooling: Pooling) -> Tensor:
    """One vector per sequence, [S, H] in fp32 (fp64 for fp64 states), not normalised.

    ``mean``: the mean over masked-in tokens. ``weighted_mean``: sum_i i*h_i / sum_i i over them, i = 1, 2, ... counting
    masked-in tokens only (Muennighoff 2022, arXiv 2202.08904, eq. 2). ``last`` and ``cls``: the sequence's last and
    first token, whatever the mask says, as in the original GRIT code.

    Every sequence must have a masked-in token for the means; ``gritkit.tokens`` refuses a text without one.
    """
    dtype = torch.promote_types(hidden_TH.dtype, torch.float32)
    ends_S = lengths_S.cumsum(0)
    if pooling == "last":
        return hidden_TH[ends_S - 1].to(dtype)
    if pooling == "cls":
        return hidden_TH[ends_S - lengths_S].to(dtype)
    sequence_T = torch.repeat_interleave(torch.arange(len(lengths_S), device=hidden_TH.device), lengths_S)
    weights_T = pool_mask_T.to(dtype)
    if pooling == "weighted_mean":
        rank_T = weights_T.cumsum(0)
        before_S = rank_T[ends_S - 1] - torch.zeros_like(ends_S, dtype=dtype).index_add(0, sequence_T, weights_T)
        weights_T = weights_T * (rank_T - before_S[sequence_T])
    # where, not a product: a masked-out NaN or inf must not reach the sum
    weighted_TH = torch.where(pool_mask_T[:, None], hidden_TH.to(dtype) * weights_T[:, None], 0.0)
    size = (len(lengths_S), hidden_TH.shape[1])
    sums_SH = torch.zeros(size, dtype=dtype, device=hidden_TH.device).index_add(0, sequence_T, weighted_TH)
    total_S = torch.zeros(len(lengths_S), dtype=dtype, device=hidden_TH.device).index_add(0, sequence_T, weights_T)
    return sums_SH / total_S[:, None]


def unit(vectors_SH: Tensor) -> Tensor:
    """L2-normalised rows; the zero vector stays zero."""
    return normalize(vectors_SH, dim=-1)
