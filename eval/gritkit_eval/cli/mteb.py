"""``gritkit eval mteb``: arguments in, tables of embedding tasks out.

This module knows nothing about how anything is measured.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from gritkit_eval.cli.bench import Form


def mteb(
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="Folder or hub id, or name=folder. May be repeated.")
    ] = None,
    baseline: Annotated[str, typer.Option(help="bm25, tfidf, minilm, random, by comma.")] = "",
    data: Annotated[Path | None, typer.Option(help="Folder of data files: sts/NAME/test.jsonl.gz and so on.")] = None,
    shared: Annotated[
        Path | None, typer.Option(envvar="GRITKIT_SHARED", help="Folder whose 'data' is taken without --data.")
    ] = None,
    tasks: Annotated[
        str, typer.Option(help="By comma: of the files (sts.stsbenchmark) or of mteb's hub (STS12).")
    ] = "",
    types: Annotated[str, typer.Option(help="Types of tasks of the files, by comma: STS, Retrieval ...")] = "",
    benchmark: Annotated[str | None, typer.Option(help="One of mteb's, from the hub: 'MTEB(eng, v2)'.")] = None,
    dim: Annotated[int | None, typer.Option(help="First numbers of a vector that count.", min=1)] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens that texts are cut to.", min=1)] = None,
    instructions: Annotated[
        Path | None, typer.Option(help="JSON of task or type -> instruction, or {query, passage}.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Examples of each task of the files.", min=2)] = None,
    seed: Annotated[int, typer.Option(help="Which examples --limit keeps.", min=0)] = 0,
    ratio_to: Annotated[
        str | None, typer.Option(help="What others are divided by; else the first of all types.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for outcomes and mteb's result files; a run there goes on where it ended."),
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Markdown file whose section is replaced; a plot beside.")
    ] = None,
    format: Annotated[Form, typer.Option("--format", help="What to write.")] = Form.table,
) -> None:
    """Embedding tasks under MTEB's protocols and metrics, from files or from the hub, beside baselines."""
    for name in ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS"):  # mteb draws a bar for every subset
        os.environ.setdefault(name, "1")
    from gritkit.files import resolve
    from gritkit_eval.bench.report import RESULTS, publish
    from gritkit_eval.mteb.command import Settings, as_json, listed, run
    from gritkit_eval.mteb.table import TITLE, plot, tables

    settings = Settings(
        models=tuple(model or ()), baselines=listed(baseline), data=data or (shared / "data" if shared else None),
        tasks=listed(tasks), types=listed(types), benchmark=benchmark, dim=dim, max_length=max_length,
        instructions=instructions, limit=limit, seed=seed, output=output, ratio_to=ratio_to,
    )  # fmt: skip
    made = run(settings, progress=lambda line: typer.echo(line, err=True))
    if format is Form.json:
        typer.echo(json.dumps(as_json(made), indent=1, allow_nan=False, ensure_ascii=False))
    else:
        typer.echo(tables(made.board, made.baseline))
    if results is not None:
        publish(made.section(), TITLE, results)
        typer.echo(f"Drew {plot(made.board, resolve(results or RESULTS))}", err=True)
