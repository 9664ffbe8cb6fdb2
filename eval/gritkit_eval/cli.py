"""``gritkit eval ...``: arguments in, one benchmark or evaluation run, a table out.

This module knows nothing about how anything is measured.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="eval", help="Measure: benchmarks against peers.", no_args_is_help=True, rich_markup_mode=None,
    pretty_exceptions_enable=False,
)  # fmt: skip
bench = typer.Typer(
    name="bench", help="Side by side with peers, in one run.", no_args_is_help=True, rich_markup_mode=None,
    pretty_exceptions_enable=False,
)  # fmt: skip
app.add_typer(bench)


class Form(str, Enum):
    """How figures are written."""

    table = "table"
    json = "json"


@app.callback()
def _group() -> None:
    """Keeps ``eval`` a group of commands while it has one."""


@bench.command("embed")
def bench_embed(
    texts: Annotated[
        Path | None, typer.Option(help="Texts to embed, one a line; default: installed docstrings.")
    ] = None,
    num: Annotated[int, typer.Option(help="How many texts.", min=10, max=1_000_000)] = 2000,
    rounds: Annotated[int, typer.Option(help="Counted runs of each contestant.", min=1, max=100)] = 5,
    size: Annotated[str, typer.Option(help="Model: 6M or 28M parameters, random weights.")] = "6M",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    peer_python: Annotated[str | None, typer.Option(help="Python of the peers' own environment.")] = None,
    results: Annotated[Path | None, typer.Option(help="Markdown file whose section is replaced.")] = None,
) -> None:
    """Embed the same texts with the same weights: gritkit against sentence-transformers, fp32 and bf16."""
    from gritkit_eval.bench.embed import run
    from gritkit_eval.bench.report import publish

    report = run(texts=texts, num=num, rounds=rounds, size=size, device=device, peer_python=peer_python)
    typer.echo(report)
    publish(report, "bench embed", results)


@bench.command("train")
def bench_train(
    data: Annotated[
        list[Path] | None,
        typer.Option(help="File or folder of records: triples with a negative, examples to write. May be repeated."),
    ] = None,
    shared: Annotated[
        Path | None,
        typer.Option(envvar="GRITKIT_SHARED", help="Folder of data sets and tokenizers; else docstrings are used."),
    ] = None,
    model: Annotated[Path | None, typer.Option(help="A model's folder instead of random weights.")] = None,
    size: Annotated[str, typer.Option(help="Random model: small (4 x 256) or medium (8 x 512).")] = "small",
    num: Annotated[int, typer.Option(help="Triples of the batch.", min=2, max=100_000)] = 256,
    num_examples: Annotated[int, typer.Option(help="Examples to write of the batch.", min=1, max=100_000)] = 64,
    max_length: Annotated[int, typer.Option(help="Tokens that texts are cut to.", min=8)] = 512,
    rounds: Annotated[int, typer.Option(help="Counted runs of each contestant.", min=1, max=100)] = 5,
    bf16: Annotated[bool, typer.Option("--bf16", help="Passes in bfloat16 too, for all alike.")] = False,
    memory: Annotated[bool, typer.Option("--memory", help="Memory by the size of the batch too.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    peer_python: Annotated[str | None, typer.Option(help="Python of the peers' own environment.")] = None,
    format: Annotated[Form, typer.Option("--format", help="What to write.")] = Form.table,
    results: Annotated[Path | None, typer.Option(help="Markdown file whose section is replaced.")] = None,
) -> None:
    """One training step on the same batch: gritkit against sentence-transformers and against padding by hand."""
    from gritkit_eval.bench.report import publish
    from gritkit_eval.bench.train import TITLE, Settings, run

    settings = Settings(
        data=tuple(data or ()), shared=shared, model=model, size=size, num=num, num_examples=num_examples,
        max_length=max_length, rounds=rounds, bf16=bf16, memory=memory, device=device, peer_python=peer_python,
    )  # fmt: skip
    report = run(settings)
    typer.echo(report.json() if format is Form.json else report.section())
    publish(report.section(), TITLE, results)


@app.command("crash")
def crash(
    rounds: Annotated[int, typer.Option(help="Kills.", min=1, max=1_000_000)] = 1000,
    seed: Annotated[int, typer.Option(help="Of the operations and of where they are interrupted.")] = 0,
    store: Annotated[str, typer.Option(help="lance, or postgres (starts a server of its own).")] = "lance",
    folder: Annotated[Path | None, typer.Option(help="Where failed knowledge bases stay; else nothing stays.")] = None,
    jobs: Annotated[int, typer.Option(help="Knowledge bases at a time.", min=1, max=64)] = 2,
) -> None:
    """Kill a process that writes a knowledge base, again and again, and check after each kill that nothing is lost."""
    from gritkit_eval.crash import Settings, run

    outcome = run(Settings(rounds=rounds, seed=seed, store=store, folder=folder, jobs=jobs))
    typer.echo(outcome.text())
    if outcome.failures:
        raise typer.Exit(1)
