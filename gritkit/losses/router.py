"""The load-balancing loss of mixture-of-experts models: experts that are all used, sequence by sequence.

This module knows nothing about models: it takes what their routers gave.

Shapes: T tokens of a row, S sequences in it, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gritkit.errors import InputError


@dataclass(frozen=True)
class RouterBalance:
    """How far the routers are from using all experts alike, in each sequence.

    Inputs: per layer the router's logits [T, E] of a packed row, before their softmax, and the sequences' lengths [S].

    Formula, per layer and sequence: E * sum_e f_e * P_e, where f_e is the share of the sequence's (token, choice) pairs
    that went to expert e (a constant to the gradient) and P_e the mean probability that the router gave it. It is 1
    where all are used alike and E / top_k where the same ones always are. Summed over sequences, the mean over layers;
    divide by the number of sequences.

    It is the sequence-wise form of DeepSeek-V2 (DeepSeek-AI 2024, arXiv 2405.04434, section 2.1.3, expert-level) of the
    loss of Switch Transformers (Fedus et al. 2021, arXiv 2101.03961, eq. 4). As f and P are means over one sequence, it
    does not depend on how a batch is cut; means over a micro-batch do, as their product is no sum over tokens. For one
    layer and one sequence transformers' ``load_balancing_loss_func`` is top_k times this, as it counts f_e per token;
    given several, it multiplies f and P pooled over all of them, where one layer's excess makes up for another's.

    Experts are taken to be the top_k most probable, as in Mixtral, Qwen-MoE, OLMoE or gpt-oss. Routers that add a
    correction or choose among groups first (DeepSeek-V3, GLM-4.5) choose others, and balance themselves by that.

    When to use: beside any other loss, with a small weight (0.001 to 0.01), in training mixture-of-experts models.
    """

    num_experts: int
    top_k: int
    """Experts that a token is sent to."""

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.num_experts:
            raise InputError(f"top_k={self.top_k} must be between 1 and num_experts={self.num_experts}")

    def __call__(self, router_logits: Sequence[Tensor], lengths_S: Tensor) -> Tensor:
        """Summed over the row's sequences, the mean over layers: a scalar, at least fp32.

        Raises:
            InputError: without layers, for another shape than [T, E], and for probabilities in place of logits (Gemma 4
                gives them under that name): their softmax would be nearly flat and look balanced.
        """
        if not router_logits:
            raise InputError("no router logits: the model has no routers, or was not asked for output_router_logits")
        expected = (int(lengths_S.sum()), self.num_experts)
        for number, logits_TE in enumerate(router_logits):
            if logits_TE.shape != expected:
                raise InputError(f"router logits {number} have the shape {tuple(logits_TE.shape)}, not {expected}")
        if all(_are_probabilities(logits_TE) for logits_TE in router_logits):
            raise InputError("these router logits are probabilities (their rows add up to 1): give their logarithm")
        device = router_logits[0].device
        return torch.stack([self._layer(x, lengths_S.to(x.device)).sum().to(device) for x in router_logits]).mean()

    def _layer(self, logits_TE: Tensor, lengths_S: Tensor) -> Tensor:
        """The loss of each sequence in one layer, [S]."""
        probabilities_TE = logits_TE.softmax(-1, dtype=torch.promote_types(logits_TE.dtype, torch.float32))
        chosen_TE = torch.zeros_like(probabilities_TE).scatter_(1, probabilities_TE.topk(self.top_k).indices, 1.0)
        sequence_T = torch.repeat_interleave(torch.arange(len(lengths_S), device=lengths_S.device), lengths_S)
        nothing_SE = probabilities_TE.new_zeros(len(lengths_S), self.num_experts)
        shares_SE = nothing_SE.index_add(0, sequence_T, chosen_TE) / (self.top_k * lengths_S[:, None])
        means_SE = nothing_SE.index_add(0, sequence_T, probabilities_TE) / lengths_S[:, None]
        return self.num_experts * (shares_SE * means_SE).sum(1)


def _are_probabilities(x_TE: Tensor) -> bool:
    """To within what bf16 makes of them. Logits add up to 1 in every row of every layer by no accident."""
    sums_T = x_TE.detach().sum(-1, dtype=torch.float32)
    return bool(((x_TE >= 0).all(-1) & ((sums_T - 1).abs() < 0.02)).all())
