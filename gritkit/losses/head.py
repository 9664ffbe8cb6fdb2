"""The summed next-token loss straight from hidden states, with the logits of a few positions at a time.

    hidden [K, H] -> for each chunk of positions: logits [C, V] -> its loss and its gradients -> gone

Full logits and their gradients are the largest tensors of a training step: 2,048 positions over 128,000 words are 1 GB
in fp32, three times over at once. The loss ends the graph, so its gradients are known up to one factor while it is
computed: they are made then, and no logits wait for the backward pass.

This module knows nothing about models. Where one scales or caps its logits, they must be made by the model and given to
``cross_entropy``.

Shapes: K target positions, C positions of a chunk, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from gritkit.errors import InputError

_CHUNK_BYTES = 64 << 20
"""What the logits of a chunk may take in fp32; two or three times as much exists at once."""
_CHUNK_BYTES_CUDA = 256 << 20
"""Each chunk reads and writes the whole weight gradient; where products are fast beside memory, it must do more."""


def summed_nll(
    hidden_KH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    targets_K: Tensor,
    share_K: Tensor | None = None,
    *,
    chunk: int | None = None,
) -> Tensor:
    """sum_k share_k * -log softmax(W h_k + b)[target_k] in nats: a scalar, in fp32 (fp64 for fp64 logits).

    ``share_K`` weighs the positions (1 each by default) and gets no gradient. ``chunk`` is the number of positions
    whose logits exist at once, by default as many as take 64 MB (256 MB on CUDA). It decides nothing but the order
    of sums.

    The product is taken in the inputs' dtype, or in autocast's as ``nn.Linear`` would; softmax and loss in at least
    fp32. Gradients are made for those of hidden, weight and bias that ask for one, with products in the dtype of the
    forward's; they are summed over chunks and scaled in at least fp32, and come in the dtype of the input they belong
    to. Without gradients to make (``no_grad``, all frozen) there is the loss alone.

    The idea is that of Liger Kernel's fused linear cross-entropy (Hsu et al. 2024, arXiv 2410.10989),
    after github.com/mgmalek/efficient_cross_entropy.

    Raises:
        InputError: for a chunk below 1; in the backward pass when its graph is asked for (``create_graph``): the
            gradients here have none, and a second derivative would be silently incomplete.
    """
    if chunk is not None and chunk < 1:
        raise InputError(f"chunk={chunk} must be at least 1 position")
    if share_K is None:
        share_K = torch.ones(len(hidden_KH), device=hidden_KH.device)
    assert len(hidden_KH) == len(targets_K) == len(share_K)
    assert not share_K.requires_grad
    limit = _CHUNK_BYTES_CUDA if weight_VH.is_cuda else _CHUNK_BYTES
    size = chunk or max(1, limit // (4 * len(weight_VH)))
    inputs = (hidden_KH, weight_VH, bias_V)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        apply: Callable[..., Tensor] = _SummedNLL.apply
        return apply(*inputs, targets_K, share_K, size)
    return _loss_and_gradients(inputs, targets_K, share_K, size, wanted=(False, False, False))[0]


class _SummedNLL(torch.autograd.Function):
    """The loss, whose gradients wait for nothing but the factor that comes from above."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_KH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_K: Tensor,
        share_K: Tensor,
        chunk: int,
    ) -> Tensor:
        inputs = (hidden_KH, weight_VH, bias_V)
        total, gradients = _loss_and_gradients(inputs, targets_K, share_K, chunk, wanted=ctx.needs_input_grad[:3])
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [None if x is None else x.dtype for x in inputs]
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise InputError(
                "summed_nll cannot be differentiated twice (create_graph=True): take cross_entropy over full logits"
            )
        # Into new tensors, as a graph that is retained comes by again; in one step with the cast, as these are large.
        scaled = [
            None if x is None else torch.mul(x, upstream, out=torch.empty_like(x, dtype=dtype))
            for x, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *scaled, None, None, None


def _loss_and_gradients(
    inputs: tuple[Tensor, Tensor, Tensor | None],
    targets_K: Tensor,
    share_K: Tensor,
    chunk: int,
    *,
    wanted: Sequence[bool],
) -> tuple[Tensor, list[Tensor | None]]:
    """The loss, and its gradients in at least fp32; None for those that are not wanted."""
    hidden_KH, weight_VH = (_as_linear_takes(x) for x in inputs[:2])
    bias_V = None if inputs[2] is None else _as_linear_takes(inputs[2])
    dtype = torch.promote_types(hidden_KH.dtype, torch.float32)
    gradients = [
        torch.zeros_like(x, dtype=dtype) if x is not None and want else None
        for x, want in zip((hidden_KH, weight_VH, bias_V), wanted, strict=True)
    ]
    total = torch.zeros((), dtype=dtype, device=hidden_KH.device)
    with torch.autocast(hidden_KH.device.type, enabled=False):
        for start in range(0, len(hidden_KH), chunk):
            part = slice(start, start + chunk)
            total += _chunk(
                (hidden_KH[part], weight_VH, bias_V),
                targets_K[part, None],
                share_K[part, None].to(dtype),
                [None if gradients[0] is None else gradients[0][part], *gradients[1:]],
            )
    return total, gradients


def _chunk(
    inputs: tuple[Tensor, Tensor, Tensor | None],
    target_C1: Tensor,
    share_C1: Tensor,
    gradients: list[Tensor | None],
) -> Tensor:
    """The loss of one chunk, its gradients added to those given. A function, so that what it makes ends with it."""
    hidden_CH, weight_VH, bias_V = inputs
    of_hidden_CH, of_weight_VH, of_bias_V = gradients
    log_CV = linear(hidden_CH, weight_VH, bias_V).log_softmax(-1, dtype=share_C1.dtype)
    loss = -(log_CV.gather(1, target_C1) * share_C1).sum()
    if all(x is None for x in gradients):
        return loss
    # Softmax minus one-hot, in the place of the logs. The shares go to the narrow factors of the products below.
    error_CV = log_CV.exp_().scatter_add_(1, target_C1, -torch.ones_like(share_C1))
    if of_bias_V is not None:
        of_bias_V.addmv_(error_CV.T, share_C1[:, 0])
    error_CV = error_CV.to(hidden_CH.dtype)
    if of_hidden_CH is not None:
        torch.mul(error_CV @ weight_VH, share_C1, out=of_hidden_CH)
    if of_weight_VH is not None:
        shared_CH = (hidden_CH * share_C1).to(hidden_CH.dtype)
        if of_weight_VH.dtype == error_CV.dtype:
            of_weight_VH.addmm_(error_CV.T, shared_CH)
        else:
            of_weight_VH += error_CV.T @ shared_CH
    return loss


def _as_linear_takes(x: Tensor) -> Tensor:
    """What ``nn.Linear`` would multiply: autocast's dtype under autocast, which leaves fp64 alone."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(device))
    return x
