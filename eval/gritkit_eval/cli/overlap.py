"""``gritkit eval overlap``: arguments in, tables out.

This module knows nothing about how anything is measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gritkit_eval.cli.options import Form, Format, Output, Results


def overlap(
    context: typer.Context,
    train: Annotated[list[Path], typer.Option(help="Training file, or a folder of them. May be repeated.")],
    evaluation: Annotated[list[Path], typer.Option("--eval", help="Evaluation file or folder. May be repeated.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Folder or hub id, or name=folder: compare its vectors too.")
    ] = None,
    n: Annotated[str, typer.Option(help="Words of an n-gram, by comma.")] = "8,13",
    min_words: Annotated[int, typer.Option(help="Texts of fewer words are left out.", min=1)] = 4,
    threshold: Annotated[float, typer.Option(help="Cosine from which texts count as the same.")] = 0.9,
    sample: Annotated[int, typer.Option(help="Training texts whose diversity is measured.", min=2, max=20_000)] = 2000,
    worst: Annotated[int, typer.Option(help="Texts of each evaluation file to name.", min=0)] = 10,
    limit: Annotated[int | None, typer.Option(help="Only the first rows of each file.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Chooses the sample.", min=0)] = 0,
    output: Output = None,
    results: Results = None,
    format: Format = Form.table,
) -> None:
    """Contamination of evaluation files by training files: copies, n-grams, vectors; diversity of the training set."""
    from gritkit_eval.analysis.comparison import Settings
    from gritkit_eval.analysis.overlap import run
    from gritkit_eval.analysis.publishing import outcome_folder, publish_report
    from gritkit_eval.arguments import whole_numbers

    settings = Settings(
        train=tuple(train), evaluation=tuple(evaluation), ns=whole_numbers("n", n), min_words=min_words,
        threshold=threshold, sample=sample, worst=worst, limit=limit, seed=seed,
    )  # fmt: skip
    with outcome_folder(output) as outcomes:
        report = run(settings, outcomes, model=model)
        publish_report(report, context, results, as_json=format is Form.json)
