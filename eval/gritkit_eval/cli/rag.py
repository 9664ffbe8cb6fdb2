"""``gritkit eval rag``: arguments in, tables out.

This module knows nothing about how anything is measured.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from gritkit.files import resolve
from gritkit_eval.cli.options import Form, Format, Models, Output


def rag(
    context: typer.Context,
    questions: Annotated[list[Path], typer.Argument(help="Question files: JSON Lines with question and answer.")],
    model: Models,
    kb: Annotated[Path | None, typer.Option(help="A knowledge base of this model, instead of the passages.")] = None,
    documents: Annotated[Path | None, typer.Option(help="JSON Lines of {'text': ...} to search in.")] = None,
    modes: Annotated[
        str, typer.Option(help="closed, off, prefix, cached, linked, query, query_doc, doc_query, by comma.")
    ] = "closed,off,prefix,cached,linked",
    codecs: Annotated[str, typer.Option(help="exact, bf16, int8, int4, by comma.")] = "int8",
    joins: Annotated[str, typer.Option(help="What later chunks leave out: no-bos, text, whole.")] = "no-bos",
    top_k: Annotated[str, typer.Option(help="How many chunks an answer reads, by comma.")] = "1,3",
    link_tokens: Annotated[str, typer.Option(help="Tokens that 'linked' computes again, by comma.")] = "16",
    oracle: Annotated[bool, typer.Option("--oracle", help="Give each question its own passages, gold first.")] = False,
    by: Annotated[str, typer.Option(help="Search: dense, text or hybrid.")] = "dense",
    limit: Annotated[int | None, typer.Option(help="Questions of each file.", min=1)] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of an answer at most.", min=1)] = 32,
    chunk_tokens: Annotated[int | None, typer.Option(help="Tokens of a chunk.")] = None,
    seed: Annotated[int, typer.Option(help="Which questions --limit keeps.")] = 0,
    output: Output = None,
    results: Annotated[Path | None, typer.Option(help="Markdown file whose section is replaced.")] = None,
    format: Format = Form.table,
) -> None:
    """Answers from documents in every way of reuse: quality, distance from full prefill, time, bytes."""
    from gritkit_eval.arguments import command_of
    from gritkit_eval.bench.report import publish
    from gritkit_eval.outcome import OutcomeFolder
    from gritkit_eval.rag import as_json, run, settings_from
    from gritkit_eval.rag_report import report, tables, title

    settings = settings_from(
        questions=questions, models=model, kb=kb, documents=documents, modes=modes, codecs=codecs, joins=joins,
        top_k=top_k, link_tokens=link_tokens, oracle=oracle, by=by, limit=limit, max_new_tokens=max_new_tokens,
        chunk_tokens=chunk_tokens, seed=seed,
    )  # fmt: skip
    rows = run(settings, outcomes=None if output is None else OutcomeFolder(resolve(output)), progress=True)
    typer.echo(json.dumps(as_json(rows), indent=1) if format is Form.json else tables(rows))
    if results is not None:
        publish(report(rows, settings, command_of(context)), title(settings), results)
