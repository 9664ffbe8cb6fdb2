"""The next-token loss: how summed negative log-likelihoods become one number.

This module knows nothing about models; a pass of the model gives the sum over its row (``GritModel.forward``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from gritkit.errors import InputError

Reduction = Literal["token", "sample", "mixed"]


@dataclass(frozen=True, kw_only=True)
class NextToken:
    """Cross-entropy of the next token over a global batch of examples.

    Inputs: the negative log-likelihood (nats) of a row's targets - the assistant's tokens and ends of turns, or all of
    a raw text - summed with the shares of their examples, and the count of the whole global batch, all rows (and
    devices) together. Both are what :meth:`shares` gives for the examples' numbers of targets n_i.

    Formula: sum_i share_i * nll_i / count, where

    - ``token``: share 1, count sum_i n_i. Every token weighs the same, whichever row it shares.
    - ``sample``: share 1 / n_i, count the number of examples. Every example weighs the same, however long.
    - ``mixed``: share 1 / (targets of the example's group), count the number of groups, which are ``group`` examples in
      a row, the last perhaps fewer. The mean over groups of each group's mean over tokens.

    ``token`` and ``mixed`` are GRIT's (Muennighoff et al. 2024, arXiv 2402.09906, Table 6), whose mixed
    loss takes the mean over tokens in each device's batch - 32 examples, then a mean over 8 devices - and so changes
    with the hardware. Here the group is stated, and the loss does not depend on how a batch is cut.

    When to use: generation alone or beside a contrastive loss. ``token`` favours long answers, ``sample`` short ones,
    ``mixed`` is between them and did best in GRIT.
    """

    reduction: Reduction = "token"
    group: int = 32
    """Examples of a group, for ``mixed`` alone."""

    def __post_init__(self) -> None:
        if self.reduction not in get_args(Reduction):
            raise InputError(f"reduction={self.reduction!r} is none of {', '.join(map(repr, get_args(Reduction)))}")
        if self.group < 1:
            raise InputError(f"group={self.group} must be at least 1 example")

    def __call__(self, row_sum: Tensor, count: int) -> Tensor:
        """This row's part of the loss; the parts of all rows add up to it. ``row_sum`` has its shares applied."""
        return row_sum / count

    def shares(self, counts: Sequence[int]) -> tuple[list[float], int]:
        """(share of each example's summed loss, the count that the total is divided by), by their numbers of targets.

        To be asked for a global batch before it is cut into rows. Devices may ask for their own examples and add up the
        counts where that is the same: always for ``token`` and ``sample``; for ``mixed`` if each device but the last
        one holds whole groups.

        Raises:
            InputError: naming the examples without targets: they have no mean, and ``gritkit.data`` lets none through.
        """
        empty = [i for i, count in enumerate(counts) if count < 1]
        if empty:
            raise InputError(f"no tokens to train on in the examples {empty}: leave them out of the batch")
        if self.reduction == "token":
            return [1.0] * len(counts), sum(counts)
        size = self.group if self.reduction == "mixed" else 1
        groups = [counts[start : start + size] for start in range(0, len(counts), size)]
        return [1 / sum(group) for group in groups for _ in group], len(groups)
