"""``gritkit eval compare``: two runs in, their differences out.

This module knows nothing about how chance is told from difference.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gritkit_eval.cli.options import Form, Format

if TYPE_CHECKING:
    from gritkit_eval.report.gathered import Gathered, Run


def compare(
    first: Annotated[str, typer.Argument(help="Folder of one run's results; with --folder, a run's name.")],
    second: Annotated[str, typer.Argument(help="What is compared with it.")],
    folder: Annotated[
        list[Path] | None, typer.Option(help="Where the named runs' results are. May be repeated.")
    ] = None,
    resamples: Annotated[
        int, typer.Option(help="Bootstrap samples, and sign flips.", min=100, max=10_000_000)
    ] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the samples.", min=0)] = 0,
    html: Annotated[Path | None, typer.Option(help="One page with a plot that needs nothing else.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="The same as Markdown, its plot in a folder beside it.")] = None,
    format: Format = Form.table,
) -> None:
    """Two runs task by task: differences, paired bootstrap intervals, which of them are beyond chance."""
    from gritkit_eval.report import comparison
    from gritkit_eval.report.compare import as_json
    from gritkit_eval.report.compare import compare as compared
    from gritkit_eval.report.composition import text, write_html, write_markdown

    made = compared(*_runs(first, second, folder or []), resamples=resamples, seed=seed)
    title, lead, chapters = comparison.title(made), comparison.lead(made), comparison.chapters(made)
    if html is not None:
        typer.echo(f"Wrote {write_html(html, title, lead, chapters)}", err=True)
    if markdown is not None:
        typer.echo(f"Wrote {write_markdown(markdown, title, lead, chapters)}", err=True)
    if format is Form.json:
        typer.echo(json.dumps(as_json(made), indent=1, allow_nan=False))
    else:
        typer.echo(f"{lead}\n\n{text(chapters)}", nl=False)


def _runs(first: str, second: str, folders: list[Path]) -> tuple[tuple[Gathered, Run], tuple[Gathered, Run]]:
    """Both runs and where they are from.

    Raises:
        InputError: for a name that is not there, or a folder with more than one run.
    """
    from gritkit_eval.report.gathered import gather, only_run

    if folders:
        gathered = gather(folders)
        return (gathered, gathered.run(first)), (gathered, gathered.run(second))
    return only_run(first), only_run(second)
