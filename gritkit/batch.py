"""Token sequences -> packed rows: which go together under a token budget, and how their tensors lie.

A row is many sequences one after the other, without padding; what each token may see is the plan's business
(``gritkit.plan``). Sequences are packed longest first, so equally long ones are neighbours and share a kernel
call; callers restore their own order by the indices.

This module knows nothing about text, models or devices beyond the budget that suits them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gritkit.errors import InputError
from gritkit.tokens import TokenSeq

# Tokens of a forward pass. On a CPU fp32 is as fast from 1,024 on, bf16 gains up to 4,096 (6M parameters, measured);
# a GPU wants work for every core.
_BUDGET = {"cpu": 4096, "mps": 4096, "cuda": 16384}


def token_budget(device: torch.device) -> int:
    """Tokens of one packed row that suit the kind of device."""
    return _BUDGET.get(device.type, 4096)


@dataclass(frozen=True)
class Batch:
    """One packed row of S sequences and T tokens."""

    ids_T: Tensor
    positions_T: Tensor
    lengths_S: Tensor
    pool_mask_T: Tensor
    loss_mask_T: Tensor

    def to(self, device: torch.device) -> Batch:
        """The row on a device; ``lengths_S`` stays on the CPU, where plans are built."""
        move = (self.ids_T, self.positions_T, self.pool_mask_T, self.loss_mask_T)
        ids, positions, pool_mask, loss_mask = (x.to(device, non_blocking=True) for x in move)
        return Batch(ids, positions, self.lengths_S, pool_mask, loss_mask)


def pack(sequences: Sequence[TokenSeq]) -> Batch:
    """The sequences in their given order, positions counting from 0 in each.

    Raises:
        InputError: when a sequence's first token is a target: in a packed row another sequence would predict it.
    """
    if any(len(sequence) and sequence.loss_mask[0] for sequence in sequences):
        raise InputError("a sequence's first token cannot be a next-token target: nothing stands before it")
    lengths = [len(sequence.ids) for sequence in sequences]
    return Batch(
        ids_T=torch.from_numpy(np.concatenate([sequence.ids for sequence in sequences])),
        positions_T=torch.cat([torch.arange(length) for length in lengths]),
        lengths_S=torch.tensor(lengths),
        pool_mask_T=torch.from_numpy(np.concatenate([sequence.pool_mask for sequence in sequences])),
        loss_mask_T=torch.from_numpy(np.concatenate([sequence.loss_mask for sequence in sequences])),
    )


def rows_of(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of the sequences in each row: longest first, a row closed before it would pass the budget.

    A sequence longer than the budget gets a row of its own.
    """
    rows: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if lengths[index] > room or not rows:
            rows.append([])
            room = budget
        rows[-1].append(index)
        room -= lengths[index]
    return rows
