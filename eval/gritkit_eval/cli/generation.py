"""``gritkit eval generation``: arguments in, tables out.

This module knows nothing about how anything is measured.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from gritkit_eval.cli.options import Form, Format, Models, Output


def generation(
    context: typer.Context,
    model: Models,
    tasks: Annotated[
        str | None,
        typer.Option(help="By comma: tasks in files, of lm-eval, or a YAML of its kind; default: all files."),
    ] = None,
    shared: Annotated[
        Path | None, typer.Option(envvar="GRITKIT_SHARED", help="Folder whose data/ holds the tasks' files.")
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(help="Solved examples in a prompt; default: each task's own.", min=0, max=100)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Examples of each task; of the harness's own the first ones.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Which examples --limit keeps, and which are solved before them.")] = 0,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Run programs that the model writes (HumanEval), in a sandbox.")
    ] = False,
    unconfined: Annotated[
        bool, typer.Option("--unconfined", help="Run them also where this machine has no sandbox.")
    ] = False,
    chat: Annotated[bool, typer.Option("--chat/--no-chat", help="Ask through the model's chat template.")] = False,
    perplexity: Annotated[
        list[Path] | None, typer.Option(help="Text, or records with a text, to predict. May be repeated.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Tokens that a prediction of a text looks back on, at most.", min=2)
    ] = None,
    output: Output = None,
    results: Annotated[Path | None, typer.Option(help="Markdown file whose section is replaced.")] = None,
    format: Format = Form.table,
) -> None:
    """What a model knows, works out and writes: MMLU, GSM8K, BBH, HumanEval, IFEval ...; perplexity of any text."""
    from gritkit.cli.loading import quiet_libraries
    from gritkit_eval.arguments import command_of
    from gritkit_eval.bench.report import publish
    from gritkit_eval.generation.local import Options
    from gritkit_eval.generation.report import TITLE, as_json, notes, report, tables
    from gritkit_eval.generation.run import Settings, run, split_names

    quiet_libraries()
    options = Options(
        num_fewshot=num_fewshot, limit=limit, seed=seed, allow_code=allow_code, unconfined=unconfined, chat=chat
    )
    settings = Settings(
        models=tuple(model), tasks=split_names(tasks), shared=shared, perplexity=tuple(perplexity or ()),
        window=window, output=output, options=options,
    )  # fmt: skip
    outcomes = run(settings, progress=True)
    if format is Form.json:
        typer.echo(json.dumps(as_json(outcomes), indent=1, ensure_ascii=False))
    else:
        typer.echo(tables(outcomes))
    for note in notes(outcomes):
        typer.echo(note, err=True)
    if results is not None:
        publish(report(outcomes, command_of(context)), TITLE, results)
