"""What a contestant of ``bench train`` saved: its gradient, its loss, the memory it took; and how two of them agree.

This module knows nothing about processes, batches or tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from gritkit.errors import GritkitError


@dataclass(frozen=True)
class Tolerance:
    """What still counts as the same step."""

    loss: float
    """Relative difference."""
    gradient: float
    """Norm of the difference over the norm of the reference."""


TOLERANCES = {"float32": Tolerance(1e-4, 1e-4), "bfloat16": Tolerance(2e-2, 1e-1)}


@dataclass(frozen=True)
class Result:
    """One step."""

    loss: float
    gradient: dict[str, NDArray[np.float64]]
    """By parameter."""


@dataclass(frozen=True)
class Agreement:
    """A gradient g against a reference r."""

    gradient_error: float
    """||g - r|| / ||r|| over all parameters together."""
    one_minus_cosine: float


def result_of(path: Path) -> Result:
    """The saved step of a file."""
    with safe_open(path, framework="np") as tensors:
        gradient = {name: tensors.get_tensor(name).astype(np.float64) for name in tensors.keys()}  # noqa: SIM118
    return Result(loss_of(path), gradient)


def loss_of(path: Path) -> float:
    return float(_figures(path)["loss"])


def growth_of(path: Path) -> int | None:
    """Bytes that memory rose by; None where the contestant's system does not tell."""
    growth = _figures(path).get("growth")
    return None if growth is None else int(growth)


def _figures(path: Path) -> dict[str, str]:
    with safe_open(path, framework="np") as tensors:
        return dict(tensors.metadata())


def agreement(name: str, precision: str, made: Result, reference: Result) -> Agreement:
    """How a step compares with the reference's.

    Raises:
        GritkitError: where loss or gradient are not the same within the precision's tolerance.
    """
    tolerance = TOLERANCES[precision]
    check_loss(name, precision, made.loss, reference.loss, "the float64 reference")
    if set(made.gradient) != set(reference.gradient):
        odd = ", ".join(sorted(set(made.gradient) ^ set(reference.gradient))[:3])
        raise GritkitError(f"{name} ({precision}): other parameters have a gradient than in the reference ({odd})")
    difference = dot = of_made = of_reference = 0.0
    for key, wanted in reference.gradient.items():
        given = made.gradient[key]
        difference += float(((given - wanted) ** 2).sum())
        dot += float((given * wanted).sum())
        of_made += float((given**2).sum())
        of_reference += float((wanted**2).sum())
    error = (difference / of_reference) ** 0.5
    if not error <= tolerance.gradient:
        raise GritkitError(
            f"{name} ({precision}): its gradient differs from the float64 reference by {error:.1e} (relative, at most "
            f"{tolerance.gradient:.0e} is the same step), so no figure counts"
        )
    return Agreement(error, 1 - dot / (of_made * of_reference) ** 0.5)


def check_loss(name: str, precision: str, loss: float, wanted: float, whose: str) -> None:
    """Raises GritkitError where a loss is not the same within the precision's tolerance."""
    difference = abs(loss - wanted) / abs(wanted)
    if not difference <= TOLERANCES[precision].loss:
        raise GritkitError(
            f"{name} ({precision}): its loss is {loss:.6f} and {whose} has {wanted:.6f}, so no figure counts"
        )
