"""``gritkit eval similarity``: arguments in, tables out.

This module knows nothing about how anything is measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gritkit_eval.cli.bench import Form


def similarity(
    context: typer.Context,
    texts: Annotated[list[Path], typer.Option(help="File of rows, or a folder of them. May be repeated.")],
    model: Annotated[
        list[str], typer.Option("--model", "-m", help="Folder or hub id, or name=folder. May be repeated.")
    ],
    instruction: Annotated[
        str | None, typer.Option(help="Of the query role, where both roles are compared and in pairs.")
    ] = None,
    k: Annotated[int, typer.Option(help="Nearest neighbours by which hubs are counted.", min=1)] = 10,
    limit: Annotated[int, typer.Option(help="Texts of each file, drawn at random.", min=4, max=5000)] = 500,
    seed: Annotated[int, typer.Option(help="Chooses the texts.", min=0)] = 0,
    output: Annotated[
        Path | None, typer.Option(help="Folder for outcomes; what is there is not measured again.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Markdown file whose section is replaced; a plot beside.")
    ] = None,
    format: Annotated[Form, typer.Option("--format", help="What to write.")] = Form.table,
) -> None:
    """A model's vector space: isotropy, alignment, uniformity, hubs, symmetry, triangle inequality, length of texts."""
    from gritkit_eval.analysis.publishing import outcome_folder, publish_report
    from gritkit_eval.analysis.similarity import Settings, run

    settings = Settings(
        models=tuple(model), texts=tuple(texts), instruction=instruction, k=k, limit=limit, seed=seed,
    )  # fmt: skip
    with outcome_folder(output) as outcomes:
        report = run(settings, outcomes)
        publish_report(report, context, results, as_json=format is Form.json)
