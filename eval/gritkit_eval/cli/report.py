"""``gritkit eval report``: folders of results in; a summary, a page, Markdown, a section of a model card out.

This module knows nothing about averages, plots or markup.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gritkit_eval.cli.options import Form, Format

if TYPE_CHECKING:
    from gritkit_eval.report.gathered import Gathered


def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders that evaluations wrote with --output.")],
    html: Annotated[Path | None, typer.Option(help="One page with plots that needs nothing else.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="The same as Markdown, its plots in a folder beside it.")
    ] = None,
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "Evaluation",
    baseline: Annotated[str | None, typer.Option(help="Run whose averages the others are divided by.")] = None,
    card: Annotated[
        Path | None, typer.Option(help="A model's folder: its results go into its README.md and model-index.")
    ] = None,
    format: Format = Form.table,
) -> None:
    """All results side by side: averages over common tasks, every task, plots, how they were made, what is missing."""
    from gritkit_eval.report.composition import Report, text, write_html, write_markdown
    from gritkit_eval.report.export import as_json
    from gritkit_eval.report.gathered import gather

    made = Report(gather(folders), title=title, baseline=baseline)
    if html is not None or markdown is not None:
        chapters = made.chapters()
        if html is not None:
            typer.echo(f"Wrote {write_html(html, title, made.lead, chapters)}", err=True)
        if markdown is not None:
            typer.echo(f"Wrote {write_markdown(markdown, title, made.lead, chapters)}", err=True)
    if card is not None:
        _write_card(made.gathered, card)
    if format is Form.json:
        typer.echo(json.dumps(as_json(made.gathered, made.groups, made.baseline), indent=1, allow_nan=False))
    else:
        typer.echo(text([made.summary()]), nl=False)


def _write_card(gathered: Gathered, folder: Path) -> None:
    from gritkit import GritModel
    from gritkit.files import resolve
    from gritkit_eval.report.card import own, write

    folder = resolve(folder)
    model = GritModel.from_pretrained(folder)
    typer.echo(f"Wrote {write(own(gathered, model.fingerprint, folder), folder, folder.name)}", err=True)
