"""What every command of this package does with its report: print it, write its section, draw its plot.

This module knows nothing about what was measured.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import typer

from gritkit.files import resolve
from gritkit_eval.arguments import command_of
from gritkit_eval.bench.report import publish
from gritkit_eval.outcome import Outcome, OutcomeFolder, plain


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
    return json.dumps(plain([dataclasses.asdict(one) for one in outcomes]), indent=1, allow_nan=False)


@contextlib.contextmanager
def outcome_folder(output: Path | None) -> Iterator[OutcomeFolder]:
    """The folder given, or one that is gone afterwards."""
    if output is not None:
        yield OutcomeFolder(resolve(output))
        return
    with tempfile.TemporaryDirectory(prefix="gritkit-eval-") as folder:
        yield OutcomeFolder(folder)
