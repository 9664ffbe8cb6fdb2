"""What the command lines of evaluations share: lists by comma, models with names, where data is, what to type again.

This module knows nothing about what is measured.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from gritkit.errors import InputError

_LEFT_OUT = ("output", "results", "format", "help")


def listed(given: str) -> tuple[str, ...]:
    """Words by comma."""
    return tuple(part.strip() for part in given.split(",") if part.strip())


def whole_numbers(name: str, given: str, *, least: int = 1) -> tuple[int, ...]:
    """Numbers by comma, each once, rising. Raises InputError for what is none, or below ``least``."""
    parts = listed(given)
    if not all(part.isdecimal() and int(part) >= least for part in parts):
        raise InputError(f"{name}={given!r} must be whole numbers of at least {least}, by comma")
    return tuple(sorted({int(part) for part in parts}))


def named(given: str) -> tuple[str, str]:
    """(name, folder or hub id) of ``name=folder`` or of a folder alone, which is called after itself, or as training
    writes it (``run/model``) after its run. Raises InputError where one is empty."""
    name, equals, source = given.partition("=")
    if not equals:
        path = Path(given)
        name, source = path.parent.name if path.name == "model" and path.parent.name else path.name, given
    if not name or not source:
        raise InputError(f"model {given!r} is neither a folder or hub id nor name=folder")
    return name, source


def check_names(models: Sequence[str], others: Sequence[str] = ()) -> None:
    """Raises InputError where two models, or a model and one of ``others``, would stand under one name."""
    names = [*others, *(named(given)[0] for given in models)]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two models are called {name!r}: give one another name (-m NAME=FOLDER)")


def data_folder(data: Path | None, shared: Path | None) -> Path | None:
    """The folder of data files; None where none was named."""
    return data if data is not None or shared is None else shared / "data"


def needed_data_folder(data: Path | None, shared: Path | None) -> Path:
    """:func:`data_folder`. Raises InputError where none was named."""
    folder = data_folder(data, shared)
    if folder is None:
        raise InputError("no data: give --data FOLDER (or --shared FOLDER, or set GRITKIT_SHARED)")
    return folder


def command_of(context: typer.Context) -> str:
    """What to type to get the same, without where it is written; absolute paths by their last part."""
    words = ["gritkit", "eval", *_names(context)]
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if parameter.name in _LEFT_OUT or value is None or value == parameter.get_default(context):
            continue
        option = [] if parameter.param_type_name == "argument" else [max(parameter.opts, key=len)]
        for one in value if isinstance(value, (list, tuple)) else [value]:
            words += option if one is True else [*option, _shown(one)]
    return shlex.join(words)


def _names(context: Any) -> list[str]:
    """Of the command, and of the groups between it and ``eval``."""
    above = context.parent
    names = [] if above is None or above.parent is None or above.info_name == "eval" else _names(above)
    return [*names, str(context.info_name)]


def _shown(value: object) -> str:
    name, equals, source = str(value).rpartition("=")
    path = Path(source)
    return f"{name}{equals}{path.name if path.is_absolute() else source}"
