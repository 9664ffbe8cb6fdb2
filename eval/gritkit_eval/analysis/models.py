"""The models of a command line, each with a name for people, and how texts become vectors here.

This module knows nothing about what vectors are for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gritkit import GritModel
from gritkit.cli.loading import quiet_libraries
from gritkit.errors import InputError
from gritkit.prompts import Role

Vectors = npt.NDArray[np.float32]
Embed = Callable[[Sequence[str]], Vectors]


def named(given: str) -> tuple[str, str]:
    """(name, folder or hub id) of ``name=folder`` or of a folder alone. Raises InputError where one is empty."""
    name, equals, source = given.partition("=")
    name, source = (name, source) if equals else (Path(given).name, given)
    if not name or not source:
        raise InputError(f"model {given!r} is neither a folder or hub id nor name=folder")
    return name, source


def check_names(models: Sequence[str]) -> None:
    """Raises InputError where two models would stand under one name."""
    names = [named(given)[0] for given in models]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two models are called {name!r}: give one another name (-m NAME=FOLDER)")


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
