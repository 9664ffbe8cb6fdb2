"""What the contestants of ``bench train`` share: the batch, its padding, the memory they took, the gradient they made.

A batch is JSON, so that every contestant reads the same token ids: ``queries``, ``positives``, ``negatives`` (lists of
ids, in the order of the triples), ``pool_from`` (the first token that is pooled) and ``examples`` ({"ids", "targets"}).

This module knows nothing about how anybody computes a step.

Shapes: B sequences of a micro-batch, T tokens of the longest of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

TEMPERATURE = 0.05
"""sentence-transformers' own: its losses multiply similarities by a scale of 20."""


def read(path: str) -> dict[str, Any]:
    """The batch of a file."""
    batch: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return batch


def padded(sequences: Sequence[Sequence[int]], value: int, device: str) -> Tensor:
    """Sequences filled up on the right to the longest of them, [B, T]."""
    longest = max(map(len, sequences))
    return torch.tensor([[*one, *[value] * (longest - len(one))] for one in sequences], device=device)


def mask(sequences: Sequence[Sequence[int]], device: str) -> Tensor:
    """1 where :func:`padded` has a token of the sequence, [B, T]."""
    return padded([[1] * len(one) for one in sequences], 0, device)


def mixed_precision(module: nn.Module, dtype: str, device: str) -> None:
    """For bfloat16, autocast around the module's forward and fp32 out of it, as accelerate (and so Trainer) has it."""
    if dtype == "bfloat16":
        from accelerate.utils import convert_outputs_to_fp32

        forward = torch.autocast(device, torch.bfloat16)(module.forward)
        module.forward = convert_outputs_to_fp32(forward)


def weights_in(dtype: str) -> torch.dtype:
    """What the weights are in; for bfloat16 only the passes are."""
    return torch.float64 if dtype == "float64" else torch.float32


class Meter:
    """How far memory rose since this was made: resident pages on a CPU, the allocator's bytes on CUDA."""

    def __init__(self, device: str) -> None:
        self._on_cuda = device == "cuda"
        if self._on_cuda:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            self._before = _status("VmRSS") if _forget_peak() else 0

    def growth(self) -> int | None:
        """Bytes; None where the system does not tell."""
        if self._on_cuda:
            return torch.cuda.max_memory_allocated() - self._before
        return _status("VmHWM") - self._before if self._before else None


def _forget_peak() -> bool:
    """Have Linux count the high-water mark of resident memory anew. Returns whether it does."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def saver(device: str, parameters: dict[str, nn.Parameter]) -> Callable[[float, str], None]:
    """What writes the last step's gradients, by name, with its loss and how far memory has grown from here on."""
    for parameter in parameters.values():
        parameter.detach().sum()  # pages of a mapped file count once they are touched
    meter = Meter(device)

    def save(loss: float, path: str) -> None:
        from safetensors.torch import save_file

        figures = {"loss": repr(loss)}
        growth = meter.growth()
        if growth is not None:
            figures["growth"] = str(growth)
        gradients = {
            name: parameter.grad.detach().cpu().contiguous()
            for name, parameter in parameters.items()
            if parameter.grad is not None
        }
        save_file(gradients, path, metadata=figures)

    return save


def named(decoder: nn.Module, head: nn.Module | None = None) -> dict[str, nn.Parameter]:
    """Parameters under names that do not depend on what the decoder is wrapped in."""
    parameters = dict(decoder.named_parameters())
    shared = set(map(id, parameters.values()))
    if head is not None:
        parameters |= {f"head.{name}": p for name, p in head.named_parameters() if id(p) not in shared}
    return parameters
