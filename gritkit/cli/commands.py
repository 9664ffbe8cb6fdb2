"""Which commands there are: our own by name, and those that other packages add, none of them imported before its call.

Another package adds one through an entry point of the group ``gritkit.commands``, whose value is a ``typer.Typer``:
``eval = "gritkit_eval.cli:app"``. The short text in the help is the first line of that module's docstring, read without
running it.

This module knows nothing about what a command does.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from gritkit import __version__
from gritkit.errors import GritkitError

GROUP = "gritkit.commands"
OWN = {
    "chat": "Talk with a model.",
    "embed": "Turn texts into vectors.",
    "index": "Read files into a knowledge base.",
    "ask": "Answer a question from a knowledge base.",
    "kb": "Look after knowledge bases: stats, verify, gate ...",
    "rerank": "Order documents by how well they answer a query.",
    "train": "Run a training recipe.",
    "info": "Say what a model is and how it is set up.",
}


def root_command() -> Any:
    """The command ``gritkit`` (a click group of whichever click typer carries)."""
    app = typer.Typer(
        cls=LazyCommands,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="One decoder language model that embeds and generates.",
        epilog="Every command: gritkit COMMAND --help. The model comes from -m/--model or the variable GRITKIT_MODEL.",
    )
    app.callback()(_root)
    return get_command(app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Show the version and leave.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of a failure; may stand anywhere.")
    ] = False,
) -> None:
    """Options before the command. ``--debug`` was taken out before parsing and is here for the help."""


class LazyCommands(TyperGroup):
    """A group whose members are imported when they are called, not when they are listed."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*OWN, *sorted(set(_added()) - set(OWN))]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in OWN:
            return _command(importlib.import_module(f"gritkit.cli.{cmd_name}").app, cmd_name)
        added = _added().get(cmd_name)
        return None if added is None else _command(_load(added), cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        added = _added()
        rows = [(name, OWN.get(name) or _short_text(added[name])) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _command(app: Any, name: str) -> Any:
    command = get_command(app) if isinstance(app, typer.Typer) else app
    command.name = name
    return command


def _added() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _load(entry: EntryPoint) -> Any:
    """Raises GritkitError, in one line, when the package or something it needs is not there."""
    try:
        return entry.load()
    except (ImportError, AttributeError, SyntaxError) as error:
        missing = str(getattr(error, "name", None) or "")
        if not isinstance(error, ModuleNotFoundError) or entry.module.startswith(missing):
            raise GritkitError(f"gritkit {entry.name} cannot be loaded from {entry.value}: {error}") from error
        extras = (entry.dist.metadata.get_all("Provides-Extra") or []) if entry.dist else []
        install = f"'{entry.dist.name}[{entry.name}]'" if entry.dist and entry.name in extras else missing
        raise GritkitError(
            f"gritkit {entry.name} needs {missing!r}, which is not installed: pip install {install}"
        ) from error


def _short_text(entry: EntryPoint) -> str:
    """First line of the docstring of an entry point's module, found and parsed without importing anything."""
    fallback = f"Added by {entry.module.partition('.')[0]}."
    try:
        package, *parts = entry.module.split(".")
        spec = importlib.util.find_spec(package) if package not in sys.modules else sys.modules[package].__spec__
        assert spec is not None
        base = Path(spec.submodule_search_locations[0]) if spec.submodule_search_locations else Path(spec.origin or "")
        path = base.joinpath(*parts)
        file = next(f for f in (path.with_name(path.name + ".py"), path / "__init__.py", path) if f.is_file())
        doc = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or fallback).splitlines()[0]
        return re.sub(r"^``[^`]*``:\s*", "", doc).replace("``", "'")
    except Exception:  # a broken package must not take the help of all others away
        return fallback
