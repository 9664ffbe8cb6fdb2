"""The figures of a run: losses, speed, how much of the machine is used, and whether the two jobs fight.

This module knows nothing about models, data or the Trainer: plain numbers and gradients in, named figures out.

Shapes: n tokens of a sequence, V vocabulary, H hidden size.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gritkit.batch import Batch
from gritkit.data import PackedBatch
from gritkit.train.step import StepLosses
from gritkit.train.world import World

_MEASURED_S = 0.2


@dataclass(frozen=True)
class ModelSize:
    """What floating-point operations are counted by."""

    parameters: int
    """Those of the layers: without the embeddings and the output layer."""
    head: int
    """V * H of the output layer."""
    attention: int
    """Heads times head size."""
    windows: tuple[int | None, ...]
    """The sliding window of every layer, None where there is none."""
    frozen: int = 0
    """Parameters of the layers that do not train."""
    frozen_head: int = 0
    """Those of the output layer."""
    causal_texts: bool = False
    """Whether texts to embed are causal too."""

    def forward_flops(self, row: Batch, *, causal: bool) -> float:
        """Multiplications and additions of one forward pass over a packed row: 2 a parameter and token, 2 V H a target,
        and 4 a head dimension and pair of query and key that sees it (Kaplan et al. 2020, arXiv 2001.08361, table 1,
        with pairs counted)."""
        before = [sum(end - start for start, end in reads) for reads in row.reads_S]
        is_causal = [causal or self.causal_texts or bool(reads) for reads in row.reads_S]
        # Thousands of sequences and dozens of layers, but few lengths and windows: equal ones are counted together.
        sequences = Counter(zip(row.lengths_S.tolist(), before, is_causal, strict=True))
        windows = Counter(self.windows)
        pairs = sum(
            number * layers * _pairs(length, first, window, causal=sees_back)
            for (length, first, sees_back), number in sequences.items()
            for window, layers in windows.items()
        )
        dense = self.parameters * row.num_tokens + self.head * _targets(row)
        return float(2.0 * dense + 4.0 * self.attention * pairs)


def _targets(row: Batch) -> int:
    return int(row.loss_mask_T.sum())


def _pairs(length: int, before: int, window: int | None, *, causal: bool) -> float:
    """Pairs of a sequence's queries and the keys that they see in one layer."""
    if not causal:
        reach = length if window is None else min(length, window)
        return float(length * length - (length - reach) * (length - reach + 1))
    whole = length * before + length * (length + 1) / 2
    if window is None or window >= before + length:
        return whole
    growing = max(0, min(length, window - before))  # queries that still see everything before them
    return growing * before + growing * (growing + 1) / 2 + (length - growing) * window


def step_flops(
    size: ModelSize, batch: PackedBatch, *, recompute: bool, twice: Sequence[Batch] = ()
) -> tuple[float, float]:
    """(model, hardware) operations of a step in this process: forward, and a backward of twice that, once where
    parameters do not train; the hardware also runs the rows of ``twice`` a second time, and every layer when
    activations are recomputed."""
    texts = [size.forward_flops(row, causal=False) for row in (*batch.embed_rows, *batch.read_rows)]
    forward = sum(texts) + sum(size.forward_flops(row, causal=True) for row in batch.next_token_rows)
    targets = sum(map(_targets, batch.rows))
    model = 3 * forward - 2.0 * (size.frozen * batch.num_tokens + size.frozen_head * targets)
    again = sum(size.forward_flops(row, causal=False) for row in twice)
    if recompute:
        again += forward - 2.0 * size.head * targets  # the output layer makes its gradients while its loss is computed
    return model, model + again


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of this device's large matrix products in this dtype, the best of a few, within a fraction of
    a second: what utilisation is a share of."""
    size = 8192 if device.type == "cuda" else 1024
    own = torch.Generator(device).manual_seed(0)  # the run's random numbers stay what they are
    a, b = (torch.randn(size, size, device=device, generator=own).to(dtype) for _ in range(2))
    best, until = math.inf, time.perf_counter() + _MEASURED_S
    _ = a @ b
    while math.isinf(best) or time.perf_counter() < until:  # on a busy machine the time may be over before the first
        _wait(device)
        start = time.perf_counter()
        _ = a @ b
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class Figures:
    """Sums since the last log; kept on the device, read when they are logged."""

    def __init__(self, world: World, rate: float) -> None:
        self._world, self._rate = world, rate
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._tokens = self._room = 0
        self._model_flops = self._hardware_flops = 0.0
        self._since = time.perf_counter()

    def add(self, losses: StepLosses, batch: PackedBatch, flops: tuple[float, float]) -> None:
        """One step of this process; ``flops`` as :func:`step_flops` gives them."""
        told = {
            "loss_contrastive": losses.contrastive,
            "loss_next_token": losses.next_token,
            "loss_router": losses.router,
            "masked_negatives": losses.masked,
        }
        self.note({name: value for name, value in told.items() if value is not None})
        self._tokens += batch.num_tokens
        self._room += sum(max(row.num_tokens, batch.budget) for row in batch.rows)
        self._model_flops += flops[0]
        self._hardware_flops += flops[1]

    def note(self, values: dict[str, Tensor]) -> None:
        """Figures of one step, whose mean over the steps that have them is logged."""
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done inside (evaluating, saving) takes no time of the training whose speed is told."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - start

    def drain(self) -> dict[str, float]:
        """Means since the last call. ``tokens_per_second`` counts all processes; ``row_fill`` is the share of the rows'
        room that holds tokens; utilisation is per device, a share of its measured rate of matrix products."""
        figures = {name: total.item() / self._counts[name] for name, total in self._sums.items()}
        seconds = max(1e-9, time.perf_counter() - self._since)
        tokens, room = self._world.summed([self._tokens, self._room])
        figures["tokens_per_second"] = tokens / seconds
        figures["row_fill"] = tokens / max(1.0, room)
        figures["flops_utilisation"] = self._model_flops / seconds / self._rate
        figures["hardware_flops_utilisation"] = self._hardware_flops / seconds / self._rate
        self._clear()
        return figures


class GradientHalves:
    """The gradient norms of both halves of a step and their cosine: below 0, the two jobs pull against each other.

    The first half's gradients are copied when they are there; the second half's are what came on top. Memory: one copy
    of the gradients.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._first: list[Tensor | None] = []
        self.figures: dict[str, Tensor] = {}

    def after_first(self) -> None:
        self._first = [None if p.grad is None else local(p.grad).detach().clone() for p in self._parameters]

    def after_all(self) -> None:
        sums: Tensor | None = None
        for parameter, first in zip(self._parameters, self._first, strict=True):
            if parameter.grad is None:
                continue
            whole = _flat(local(parameter.grad).detach())
            own = torch.zeros_like(whole) if first is None else _flat(first)
            other = whole - own
            parts = torch.stack([torch.dot(x, y) for x, y in ((own, own), (other, other), (own, other))])
            sums = parts if sums is None else sums + parts
        self._first = []
        if sums is None:
            return
        if any(isinstance(parameter, DTensor) for parameter in self._parameters):
            dist.all_reduce(sums)
        first_norm, second_norm = sums[0].sqrt(), sums[1].sqrt()
        # one after the other: the product of two small norms is zero before either is
        cosine = sums[2] / first_norm / second_norm
        self.figures = {
            "grad_norm_contrastive": first_norm,
            "grad_norm_next_token": second_norm,
            "grad_cosine": cosine.nan_to_num(0.0, posinf=0.0, neginf=0.0),
        }


def local(gradient: Tensor) -> Tensor:
    """This process's part of a tensor that is spread over processes."""
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def _flat(gradient: Tensor) -> Tensor:
    """In at least fp32, before anything is subtracted: halves may nearly cancel."""
    return gradient.flatten().to(torch.promote_types(gradient.dtype, torch.float32))
