"""``gritkit eval similarity``: arguments in, tables out.

This module knows nothing about how anything is measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gritkit_eval.cli.options import Form, Format, Models, Output, Results


def similarity(
    context: typer.Context,
    texts: Annotated[list[Path], typer.Option(help="File of rows, or a folder of them. May be repeated.")],
    model: Models,
    instruction: Annotated[
        str | None, typer.Option(help="Of the query role, where both roles are compared and in pairs.")
    ] = None,
    k: Annotated[int, typer.Option(help="Nearest neighbours by which hubs are counted.", min=1)] = 10,
    limit: Annotated[int, typer.Option(help="Texts of each file, drawn at random.", min=4, max=5000)] = 500,
    seed: Annotated[int, typer.Option(help="Chooses the texts.", min=0)] = 0,
    output: Output = None,
    results: Results = None,
    format: Format = Form.table,
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
