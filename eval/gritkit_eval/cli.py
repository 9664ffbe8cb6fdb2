"""``gritkit eval ...``: arguments in, one benchmark or evaluation run, a table out.

This module knows nothing about how anything is measured.
"""

from __future__ import annotations

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
