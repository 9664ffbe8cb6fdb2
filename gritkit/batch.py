"""Token sequences -> packed rows: which go together under a token budget, and how their tensors lie.

A row is many sequences one after the other, without padding; what each token may see is the plan's business
(``gritkit.plan``). Sequences are packed longest first, so equally long ones are neighbours and share a kernel
call; callers restore their own order by the indices.

This module knows nothing about text, models or devices beyond the budget that suits them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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


Reads = tuple[tuple[int, int], ...]
"""Ranges of a row, (start, end) exclusive."""


@dataclass(frozen=True)
class Batch:
    """One packed row of S sequences and T tokens."""

    ids_T: Tensor
    positions_T: Tensor
    lengths_S: Tensor
    pool_mask_T: Tensor
    loss_mask_T: Tensor
    share_S: Tensor
    """What each sequence's summed negative log-likelihood is multiplied by; float64, on the CPU."""
    reads_S: tuple[Reads, ...]
    """For each sequence the ranges of the row that it sees before itself: an answer its documents, others nothing."""

    def to(self, device: torch.device) -> Batch:
        """The row on a device; ``lengths_S`` and ``share_S`` stay on the CPU, where plans are built."""
        move = ("ids_T", "positions_T", "pool_mask_T", "loss_mask_T")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in move})

    @property
    def num_tokens(self) -> int:
        return len(self.ids_T)


@dataclass(frozen=True)
class Reading:
    """Documents, and the answer that is written from them."""

    documents: Sequence[TokenSeq]
    answer: TokenSeq
    """The question and its answer, without a beginning of text."""
    share: float = 1.0

    def __len__(self) -> int:
        return sum(map(len, self.documents)) + len(self.answer)


def pack(sequences: Sequence[TokenSeq], shares: Sequence[float] | None = None) -> Batch:
    """The sequences in their given order, each alone, positions counting from 0 in each.

    Raises:
        InputError: when a sequence's first token is a target: in a packed row another sequence would predict it.
    """
    if any(len(sequence) and sequence.loss_mask[0] for sequence in sequences):
        raise InputError("a sequence's first token cannot be a next-token target: nothing stands before it")
    return _row(
        sequences,
        [torch.arange(len(sequence)) for sequence in sequences],
        [1.0] * len(sequences) if shares is None else shares,
        [()] * len(sequences),
    )


def pack_readings(readings: Sequence[Reading], num_bos: int) -> Batch:
    """Each reading's documents, then its answer, which sees them as serving joins them (``gritkit.rag.answering``).

    A document reads itself whole; the answer sees all but the first without their ``num_bos`` tokens of beginning, as
    though they stood one right after the other. Positions say the same: a later document's beginning shares its place
    with the end of the one before.

    Raises:
        InputError: for a reading without a document, or whose answer starts with a target.
    """
    sequences: list[TokenSeq] = []
    positions: list[Tensor] = []
    shares: list[float] = []
    reads: list[Reads] = []
    row = 0
    for reading in readings:
        if not reading.documents:
            raise InputError("an answer that reads needs at least one document")
        if reading.answer.loss_mask[0]:
            raise InputError("an answer's first token cannot be a next-token target: a question stands before it")
        place, seen = 0, []
        for index, document in enumerate(reading.documents):
            hidden = num_bos if index else 0
            positions.append(torch.arange(place - hidden, place - hidden + len(document)))
            seen.append((row + hidden, row + len(document)))
            place += len(document) - hidden
            row += len(document)
        positions.append(torch.arange(place, place + len(reading.answer)))
        row += len(reading.answer)
        sequences += [*reading.documents, reading.answer]
        shares += [0.0] * len(reading.documents) + [reading.share]
        reads += [()] * len(reading.documents) + [tuple(seen)]
    return _row(sequences, positions, shares, reads)


def _row(
    sequences: Sequence[TokenSeq], positions: Sequence[Tensor], shares: Sequence[float], reads: Sequence[Reads]
) -> Batch:
    return Batch(
        ids_T=torch.from_numpy(np.concatenate([sequence.ids for sequence in sequences])),
        positions_T=torch.cat(list(positions)),
        lengths_S=torch.tensor([len(sequence.ids) for sequence in sequences]),
        pool_mask_T=torch.from_numpy(np.concatenate([sequence.pool_mask for sequence in sequences])),
        loss_mask_T=torch.from_numpy(np.concatenate([sequence.loss_mask for sequence in sequences])),
        share_S=torch.tensor(shares, dtype=torch.float64),
        reads_S=tuple(reads),
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
