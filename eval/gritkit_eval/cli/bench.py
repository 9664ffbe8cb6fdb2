"""``gritkit eval bench ...``: arguments in, one benchmark run, a section out.

This module knows nothing about how anything is measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gritkit.files import resolve
from gritkit_eval.cli.options import Form, Format, Results

app = typer.Typer(
    name="bench", help="Side by side with peers, in one run.", no_args_is_help=True, rich_markup_mode=None,
    pretty_exceptions_enable=False,
)  # fmt: skip


@app.command("embed")
def bench_embed(
    context: typer.Context,
    texts: Annotated[
        Path | None, typer.Option(help="Texts to embed, one a line; default: installed docstrings.")
    ] = None,
    num: Annotated[int, typer.Option(help="How many texts.", min=10, max=1_000_000)] = 2000,
    rounds: Annotated[int, typer.Option(help="Counted runs of each contestant.", min=1, max=100)] = 5,
    size: Annotated[str, typer.Option(help="Model: 6M, 28M or 1B parameters, random weights.")] = "6M",
    dtype: Annotated[str, typer.Option(help="Precisions, by comma.")] = "float32,bfloat16",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    peer_python: Annotated[str | None, typer.Option(help="Python of the peers' own environment.")] = None,
    results: Annotated[Path | None, typer.Option(help="Markdown file whose section is replaced.")] = None,
) -> None:
    """Embed the same texts with the same weights: gritkit against sentence-transformers, fp32 and bf16."""
    from gritkit_eval.arguments import command_of
    from gritkit_eval.bench.embed import run
    from gritkit_eval.bench.report import publish, title_of

    report = run(
        texts=texts, num=num, rounds=rounds, size=size, dtypes=dtype.split(","), device=device,
        peer_python=peer_python, command=command_of(context),
    )  # fmt: skip
    typer.echo(report)
    publish(report, title_of("bench embed", device), results)


@app.command("search")
def bench_search(
    num: Annotated[int, typer.Option(help="How many chunks.", min=100, max=10_000_000)] = 100_000,
    dim: Annotated[int, typer.Option(help="Numbers of a vector.", min=2, max=16_000)] = 384,
    seed: Annotated[int, typer.Option(help="What the chunks and the queries follow from.", min=0)] = 0,
    results: Annotated[Path | None, typer.Option(help="Markdown file whose section is replaced.")] = None,
) -> None:
    """Fill and search the stores: index rate, memory, disk, latencies, recall of the index; LanceDB and PostgreSQL."""
    from gritkit_eval.bench.report import publish
    from gritkit_eval.bench.search import TITLE, run

    report = run(num=num, dim=dim, seed=seed)
    typer.echo(report)
    publish(report, TITLE, results)


@app.command("train")
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
    format: Format = Form.table,
    results: Annotated[Path | None, typer.Option(help="Markdown file whose section is replaced.")] = None,
) -> None:
    """One training step on the same batch: gritkit against sentence-transformers and against padding by hand."""
    from gritkit_eval.bench.report import publish, title_of
    from gritkit_eval.bench.train import TITLE, Settings, run

    settings = Settings(
        data=tuple(data or ()), shared=shared, model=model, size=size, num=num, num_examples=num_examples,
        max_length=max_length, rounds=rounds, bf16=bf16, memory=memory, device=device, peer_python=peer_python,
    )  # fmt: skip
    report = run(settings)
    typer.echo(report.json() if format is Form.json else report.section())
    publish(report.section(), title_of(TITLE, device), results)


@app.command("rag")
def bench_rag(
    sizes: Annotated[str, typer.Option(help="Tokens of the one document, by comma.")] = "256,1024,4096,16384",
    num_documents: Annotated[int, typer.Option(help="Documents of the case with several.", min=1, max=64)] = 4,
    several: Annotated[int, typer.Option(help="Tokens of its documents together.", min=32)] = 4096,
    question_tokens: Annotated[int, typer.Option(help="Tokens of the question, format included.", min=16)] = 32,
    rounds: Annotated[int, typer.Option(help="Counted runs of each way; full prefill has fewer.", min=1)] = 7,
    size: Annotated[str, typer.Option(help="Model: 28M parameters, or tiny; random weights.")] = "28M",
    shared: Annotated[
        Path | None, typer.Option(envvar="GRITKIT_SHARED", help="Folder with a trained model for the codecs' errors.")
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="On the disk to measure; else where temporary files go.")] = None,
    results: Results = None,
) -> None:
    """Time to the first token from cached documents, disk included, against full prefill; rates of store and codecs."""
    from gritkit_eval.bench.rag import TITLE, Settings, lengths, run
    from gritkit_eval.bench.rag_report import plot, report
    from gritkit_eval.bench.report import publish

    settings = Settings(
        sizes=lengths(sizes), num_documents=num_documents, several=several, question_tokens=question_tokens,
        rounds=rounds, size=size, shared=shared, folder=folder,
    )  # fmt: skip
    made = run(settings)
    section = report(made)
    typer.echo(section)
    if results is not None:
        publish(section, TITLE, results)
        typer.echo(f"Drew {plot(made, resolve(results))}", err=True)


@app.command("serve")
def bench_serve(
    clients: Annotated[str, typer.Option(help="Clients at once, by comma.")] = "1,8,32",
    rounds: Annotated[int, typer.Option(help="Counted runs of each server.", min=1, max=100)] = 3,
    answer_tokens: Annotated[int, typer.Option(help="Mean length of an answer.", min=2, max=1024)] = 64,
    size: Annotated[str, typer.Option(help="Model: 6M, 28M or 1B parameters, random weights.")] = "28M",
    documents: Annotated[int, typer.Option(help="To answer from; 0: that part is left out.", min=0, max=10_000)] = 24,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    slots: Annotated[int | None, typer.Option(help="Of gritkit's server; default: its own.", min=1)] = None,
    peer_python: Annotated[str | None, typer.Option(help="Python of the peers' own environment.")] = None,
    format: Format = Form.table,
    results: Annotated[Path | None, typer.Option(help="Markdown file whose section is replaced.")] = None,
) -> None:
    """The server under load: chat against transformers serve, embeddings against sentence-transformers behind FastAPI;
    memory; answers from documents against the library's."""
    from gritkit_eval.arguments import whole_numbers
    from gritkit_eval.bench.report import publish, title_of
    from gritkit_eval.bench.serve import TITLE, run
    from gritkit_eval.bench.serve_contest import Settings
    from gritkit_eval.bench.serve_report import as_json, report_section

    settings = Settings(
        clients=whole_numbers("clients", clients), rounds=rounds, answer_tokens=answer_tokens, size=size, dtype=dtype,
        num_documents=documents, device=device, slots=slots, peer_python=peer_python,
    )  # fmt: skip
    report = run(settings)
    section = report_section(report)
    typer.echo(as_json(report) if format is Form.json else section)
    publish(section, title_of(TITLE, device), results)
