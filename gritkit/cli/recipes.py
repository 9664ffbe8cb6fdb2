"""Finding recipes and calling their ``main`` with ``k=v`` options, converted by its signature.

A recipe is a Python file with ``def main(*, output: Path = ..., steps: int = 100) -> None``. They stand in a checkout's
``recipes/`` or, in an installed wheel, in ``gritkit/_recipes/``.

This module knows nothing about what recipes do.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import inspect
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import typer

import gritkit
from gritkit.errors import InputError
from gritkit.files import resolve

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def recipe_folder() -> Path:
    """Where named recipes stand: beside the package in a checkout, inside it in an installed wheel."""
    package = Path(gritkit.__file__).parent
    checkout = package.parent / "recipes"
    return checkout if checkout.is_dir() and (package.parent / "pyproject.toml").is_file() else package / "_recipes"


def list_recipes(folder: Path) -> dict[str, str]:
    """Name -> first line of the docstring, read without running anything."""
    found = {}
    for file in sorted(folder.glob("*.py")):
        if not file.name.startswith("_"):
            try:
                doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
            except (SyntaxError, ValueError) as error:
                doc = f"(cannot be read: {error})"
            found[file.stem] = (doc or "").partition("\n")[0]
    return found


def find_recipe(name: str, folder: Path) -> Path:
    """A recipe's file, by path or by name. Raises InputError with the nearest names."""
    if name.endswith(".py") or "/" in name or "\\" in name:
        path = resolve(name)
        if not path.is_file():
            raise InputError(f"no recipe file {path}")
        return path
    known = list_recipes(folder)
    if name in known:
        return folder / f"{name}.py"
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}" if known else f"none in {folder}"
    raise InputError(f"no recipe {name!r}: {hint} ('gritkit train' lists them; a file is named by its path)")


def load_main(path: Path) -> Callable[..., Any]:
    """The recipe's ``main``. Raises InputError when it has none or does not parse."""
    spec = importlib.util.spec_from_file_location(f"_gritkit_recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # so that what it defines can be pickled (data workers)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise InputError(f"{error.filename or path} line {error.lineno} is not Python: {error.msg}") from error
    main = getattr(module, "main", None)
    if not callable(main):
        raise InputError(f"{path} is no recipe: it has no function main")
    return typing.cast(Callable[..., Any], main)


def read_options(main: Callable[..., Any], given: Sequence[str]) -> dict[str, Any]:
    """``k=v`` words -> keyword arguments of ``main``. Raises typer.BadParameter naming the known options."""
    known = inspect.signature(main).parameters
    hints = typing.get_type_hints(main)
    options: dict[str, Any] = {}
    for word in given:
        name, equals, value = word.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise typer.BadParameter(f"{word!r} is not of the form name=value; known are {describe_options(main)}")
        if name not in known:
            raise typer.BadParameter(f"unknown option {name!r}; known are {describe_options(main)}")
        if name in options:
            raise typer.BadParameter(f"option {name!r} is given twice")
        try:
            options[name] = convert(value, hints.get(name, str))
        except ValueError as error:
            raise typer.BadParameter(f"{name}={value!r} is not {error}") from None
    missing = [name for name, p in known.items() if p.default is p.empty and name not in options]
    if missing:
        raise typer.BadParameter(f"{missing[0]}=... is needed; options are {describe_options(main)}")
    return options


def describe_options(main: Callable[..., Any], separator: str = ", ") -> str:
    """``name=default`` of every option."""
    parameters = inspect.signature(main).parameters.values()
    return separator.join(f"{p.name}={'...' if p.default is p.empty else p.default}" for p in parameters) or "none"


def convert(value: str, kind: Any) -> Any:
    """A word as the annotated type. Raises ValueError saying what it should be."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        if value.lower() in ("none", "") and type(None) in get_args(kind):
            return None
        errors = []
        for member in get_args(kind):
            if member is not type(None):
                try:
                    return convert(value, member)
                except ValueError as error:
                    errors.append(str(error))
        raise ValueError(" or ".join(errors))
    if origin is Literal:
        for choice in get_args(kind):
            if str(choice) == value:
                return choice
        raise ValueError(f"one of {', '.join(map(str, get_args(kind)))}")
    if kind is bool:
        if value.lower() in _TRUE + _FALSE:
            return value.lower() in _TRUE
        raise ValueError("true or false")
    if kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            raise ValueError("a whole number" if kind is int else "a number") from None
    if kind is Path:
        return Path(value).expanduser()
    if kind in (str, Any):
        return value
    raise ValueError(f"settable here: its type is {kind}")
