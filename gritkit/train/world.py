"""The processes that train together, and the few things they tell each other: vectors, counts, and when to reduce.

Everything is a no-op in a single process. This module knows nothing about models, losses or batches.

Shapes: N rows of one process, A rows of all, H columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class World:
    """``size`` processes, of which this one is ``rank``."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where the process group can send tensors from."""

    @staticmethod
    def here(device: torch.device | None = None) -> World:
        """The default process group, or one process where none was started."""
        if not (dist.is_available() and dist.is_initialized()):
            return World()
        return World(dist.get_rank(), dist.get_world_size(), device or torch.device("cpu"))

    def summed(self, numbers: Sequence[float]) -> list[float]:
        """Each number added up over the processes; exact for whole numbers below 2^53."""
        return self._reduced(numbers, dist.ReduceOp.SUM)

    def largest(self, numbers: Sequence[int]) -> list[int]:
        """The largest of each number over the processes."""
        return [int(x) for x in self._reduced(numbers, dist.ReduceOp.MAX)]

    def _reduced(self, numbers: Sequence[float], how: Any) -> list[float]:
        if self.size == 1:
            return [float(x) for x in numbers]
        # MPS has no float64; process groups of more than one process are on CUDA or the CPU
        told = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(told, op=how)
        result: list[float] = told.tolist()
        return result

    def wait(self) -> None:
        """Until every process has come here."""
        self.summed([0])

    def told(self, text: str) -> str:
        """What the first process says."""
        if self.size == 1:
            return text
        said = [text]
        dist.broadcast_object_list(said, src=0, device=self.device)
        return said[0]

    def all_told(self, value: Any) -> list[Any]:
        """What every process says, in all of them."""
        if self.size == 1:
            return [value]
        said = [None] * self.size
        dist.all_gather_object(said, value)
        return said

    def summed_tensor(self, value: Tensor) -> Tensor:
        """The sum over processes, without gradient; taken in float64, whatever each process has."""
        if self.size == 1:
            return value.detach()
        summed = value.detach().to(torch.float64, copy=True)
        dist.all_reduce(summed)
        return summed

    def counts(self, number: int) -> list[int]:
        """``number`` of every process."""
        mine = [0] * self.size
        mine[self.rank] = number
        return [int(x) for x in self.summed(mine)]

    def gathered(self, rows_NH: Tensor, counts: Sequence[int]) -> Tensor:
        """The rows of all processes, one process after the other [A, H]; gradients come back to whose rows they are.

        ``counts``: every process's number of rows.
        """
        if self.size == 1:
            return rows_NH
        rows: Tensor = _AllGather.apply(rows_NH, list(counts), self.rank)  # type: ignore[no-untyped-call]
        return rows


class _AllGather(torch.autograd.Function):
    """Concatenation over processes. Backward sums what every process wants of a row: the exact gradient.

    (Gathering without gradient and putting the own rows back, as the original GRIT code does, gives 1/size of it.)
    """

    @staticmethod
    def forward(ctx: Any, rows_NH: Tensor, counts: list[int], rank: int) -> Tensor:
        ctx.counts, ctx.rank = counts, rank
        padded = rows_NH.new_zeros(max(counts), *rows_NH.shape[1:])
        padded[: len(rows_NH)] = rows_NH
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradient_AH = gradients[0].contiguous().clone()
        dist.all_reduce(gradient_AH)
        start = sum(ctx.counts[: ctx.rank])
        return gradient_AH[start : start + ctx.counts[ctx.rank]], None, None


@contextmanager
def reduced(model: nn.Module, now: bool) -> Iterator[None]:
    """Whether the gradients of the passes inside are reduced over processes at once, for models that DDP or FSDP2 wrap.

    DDP reduces only what a forward pass inside announced. FSDP2 reduces in every pass whatever is said here: keeping
    whole gradients until the last one would cost the memory that it is used for.
    """
    if not isinstance(model, DistributedDataParallel):
        yield
        return
    before = model.require_backward_grad_sync
    model.require_backward_grad_sync = now
    try:
        yield
    finally:
        model.require_backward_grad_sync = before


class RandomState:
    """The random state of the CPU and of the device, so that a pass can be run again with the same dropout."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @contextmanager
    def again(self) -> Iterator[None]:
        """Inside, random numbers are those that followed the state; afterwards they go on as though nothing was."""
        devices = [] if self._cuda is None else [self._device]
        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(self._cpu)
            if self._cuda is not None:
                torch.cuda.set_rng_state(self._cuda, self._device)
            yield
