"""Models under their names, and how texts become vectors here.

This module knows nothing about what vectors are for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gritkit import GritModel
from gritkit.cli.loading import quiet_libraries
from gritkit.prompts import Role
from gritkit_eval.arguments import named

Vectors = npt.NDArray[np.float32]
Embed = Callable[[Sequence[str]], Vectors]


def opened(given: str, **loading: Any) -> tuple[str, GritModel]:
    """The name and the loaded model; the keywords are those of ``GritModel.from_pretrained``."""
    quiet_libraries()
    name, source = named(given)
    return name, GritModel.from_pretrained(source, **loading)


def embedder(model: GritModel, role: Role = "passage") -> Embed:
    """Texts to vectors in that role without instruction, what is too long being cut."""

    def embed(texts: Sequence[str]) -> Vectors:
        vectors: Vectors = model.embed(list(texts), role=role, truncate=True)
        return vectors

    return embed
