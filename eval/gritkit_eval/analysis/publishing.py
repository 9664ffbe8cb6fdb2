"""What every command of this package does with its report: print it, write its section, draw its plot.

This module knows nothing about what was measured.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import typer

from gritkit.errors import InputError
from gritkit.files import resolve
from gritkit_eval.bench.report import publish
from gritkit_eval.outcome import Outcome, OutcomeFolder

_LEFT_OUT = ("output", "results", "format", "help")


class Report(Protocol):
    """The figures of one call."""

    @property
    def title(self) -> str: ...
    @property
    def outcomes(self) -> list[Outcome]: ...
    def tables(self) -> str: ...
    def section(self, command: str) -> str: ...
    def plot(self, results: Path) -> Path: ...


def publish_report(report: Report, context: typer.Context, results: Path | None, *, as_json: bool) -> None:
    """Figures to stdout; with a results file its section and, beside it, the plot."""
    typer.echo(as_text(report.outcomes) if as_json else report.tables())
    if results is None:
        return
    typer.echo(f"Drew {report.plot(resolve(results))}", err=True)
    publish(report.section(command_of(context)), report.title, results)


def as_text(outcomes: Sequence[Outcome]) -> str:
    """A JSON array; what is not defined is null."""
    return json.dumps([_defined(dataclasses.asdict(one)) for one in outcomes], indent=1, allow_nan=False)


def _defined(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _defined(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_defined(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def command_of(context: typer.Context) -> str:
    """What to type to get the same, without where it is written; absolute paths by their last part."""
    words = ["gritkit", "eval", str(context.info_name)]
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if parameter.name in _LEFT_OUT or value is None or value == parameter.get_default(context):
            continue
        option = max(parameter.opts, key=len)
        for one in value if isinstance(value, (list, tuple)) else [value]:
            words += [option] if one is True else [option, _shown(one)]
    return shlex.join(words)


def _shown(value: Any) -> str:
    name, equals, source = str(value).rpartition("=")
    path = Path(source)
    return f"{name}{equals}{path.name if path.is_absolute() else source}"


@contextlib.contextmanager
def outcome_folder(output: Path | None) -> Iterator[OutcomeFolder]:
    """The folder given, or one that is gone afterwards."""
    if output is not None:
        yield OutcomeFolder(resolve(output))
        return
    with tempfile.TemporaryDirectory(prefix="gritkit-eval-") as folder:
        yield OutcomeFolder(folder)


def data_folder(data: Path | None, shared: Path | None) -> Path:
    """Raises InputError where neither is given."""
    if data is not None:
        return data
    if shared is None:
        raise InputError("no data: give --data FOLDER or set GRITKIT_SHARED")
    return shared / "data"


def listed(given: str) -> tuple[str, ...]:
    """Words by comma."""
    return tuple(part.strip() for part in given.split(",") if part.strip())


def whole_numbers(name: str, given: str) -> tuple[int, ...]:
    """Numbers by comma, each once, rising. Raises InputError for what is none, and for 0."""
    parts = listed(given)
    if not all(part.isdecimal() and int(part) for part in parts):
        raise InputError(f"{name}={given!r} must be whole numbers of at least 1, by comma")
    return tuple(sorted({int(part) for part in parts}))
