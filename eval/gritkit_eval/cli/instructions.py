"""``gritkit eval instructions``: arguments in, tables out.

This module knows nothing about how anything is measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gritkit_eval.cli.bench import Form


def instructions(
    context: typer.Context,
    model: Annotated[
        list[str], typer.Option("--model", "-m", help="Folder or hub id, or name=folder. May be repeated.")
    ],
    data: Annotated[Path | None, typer.Option(help="Folder of data files: sts/NAME/test.jsonl.gz and so on.")] = None,
    shared: Annotated[
        Path | None, typer.Option(envvar="GRITKIT_SHARED", help="Folder whose 'data' is taken without --data.")
    ] = None,
    tasks: Annotated[str, typer.Option(help="Tasks of the files (sts.stsbenchmark), by comma; default: all.")] = "",
    types: Annotated[str, typer.Option(help="Types of tasks, by comma: STS, Retrieval ...")] = "",
    limit: Annotated[int | None, typer.Option(help="Examples of each task.", min=2)] = None,
    seed: Annotated[int, typer.Option(help="Which examples --limit keeps.", min=0)] = 0,
    output: Annotated[
        Path | None, typer.Option(help="Folder for outcomes; a run there goes on where it ended.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Markdown file whose section is replaced; a plot beside.")
    ] = None,
    format: Annotated[Form, typer.Option("--format", help="What to write.")] = Form.table,
) -> None:
    """Each task with no instruction, the right one, a wrong one, a vague one, and the right one on documents too."""
    from gritkit_eval.analysis.instructions import Settings, run
    from gritkit_eval.analysis.publishing import data_folder, listed, outcome_folder, publish_report

    settings = Settings(
        models=tuple(model), data=data_folder(data, shared), tasks=listed(tasks), types=listed(types), limit=limit,
        seed=seed,
    )  # fmt: skip
    with outcome_folder(output) as outcomes:
        publish_report(run(settings, outcomes), context, results, as_json=format is Form.json)
