"""``gritkit eval mteb``: arguments in, tables of embedding tasks out.

This module knows nothing about how anything is measured.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from gritkit_eval.cli.options import Data, Form, Format, Limit, Output, Results, Seed, Shared, Types
from gritkit_eval.cli.quiet import quiet_mteb


def mteb(
    context: typer.Context,
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="Folder or hub id, or name=folder. May be repeated.")
    ] = None,
    baseline: Annotated[str, typer.Option(help="bm25, tfidf, minilm, random, by comma.")] = "",
    data: Data = None,
    shared: Shared = None,
    tasks: Annotated[
        str, typer.Option(help="By comma: of the files (sts.stsbenchmark) or of mteb's hub (STS12).")
    ] = "",
    types: Types = "",
    benchmark: Annotated[str | None, typer.Option(help="One of mteb's, from the hub: 'MTEB(eng, v2)'.")] = None,
    dim: Annotated[int | None, typer.Option(help="First numbers of a vector that count.", min=1)] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens that texts are cut to.", min=1)] = None,
    instructions: Annotated[
        Path | None, typer.Option(help="JSON of task or type -> instruction, or {query, passage}.")
    ] = None,
    limit: Limit = None,
    seed: Seed = 0,
    ratio_to: Annotated[
        str | None, typer.Option(help="What others are divided by; else the first of all types.")
    ] = None,
    output: Output = None,
    results: Results = None,
    format: Format = Form.table,
) -> None:
    """Embedding tasks under MTEB's protocols and metrics, from files or from the hub, beside baselines."""
    quiet_mteb()
    from gritkit.files import resolve
    from gritkit_eval.arguments import command_of, data_folder, listed
    from gritkit_eval.bench.report import publish
    from gritkit_eval.mteb.command import Settings, as_json, run
    from gritkit_eval.mteb.table import TITLE, plot, tables

    settings = Settings(
        models=tuple(model or ()), baselines=listed(baseline), data=data_folder(data, shared),
        tasks=listed(tasks), types=listed(types), benchmark=benchmark, dim=dim, max_length=max_length,
        instructions=instructions, limit=limit, seed=seed, output=output, ratio_to=ratio_to,
    )  # fmt: skip
    made = run(settings, progress=lambda line: typer.echo(line, err=True))
    if format is Form.json:
        typer.echo(json.dumps(as_json(made), indent=1, allow_nan=False, ensure_ascii=False))
    else:
        typer.echo(tables(made.board, made.baseline))
    if results is not None:
        publish(made.section(command_of(context)), TITLE, results)
        typer.echo(f"Drew {plot(made.board, resolve(results))}", err=True)
