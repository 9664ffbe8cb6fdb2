"""The next-token loss: how summed negative log-likelihoods become one number.

This module knows nothing about models; a pass of the model gives the sum over its row (``GritModel.forward``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gritkit.errors import InputError


@dataclass(frozen=True, kw_only=True)
class NextToken:
    """Cross-entropy of the next token over the targets of a global batch.

    Inputs: the summed negative log-likelihood (nats) of a row's targets - the assistant's tokens and ends of turns,
    or all of a raw text - and the number of targets in the whole global batch, all rows (and devices) together.

    Formula: ``token``: sum over all targets / their number; every token weighs the same, whichever row it shares.
    (The mean of means that comes of dividing in each micro-batch depends on how the batch was cut.)

    When to use: generation alone or beside a contrastive loss.
    """

    reduction: Literal["token"] = "token"

    def __post_init__(self) -> None:
        if self.reduction != "token":
            raise InputError(f"reduction={self.reduction!r} is not 'token', the one there is")

    def __call__(self, row_sum: Tensor, num_targets: int) -> Tensor:
        """This row's share of the mean over all targets; the shares of the rows add up to it."""
        return row_sum / num_targets
