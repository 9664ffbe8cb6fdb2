"""``gritkit index``: files -> a knowledge base, each file or row one document.

This module knows nothing about file formats, stores or vectors; ``gritkit.rag`` does.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gritkit.cli import engine as engines
from gritkit.cli import options
from gritkit.cli.loading import open_model
from gritkit.cli.output import note, to_json, write
from gritkit.cli.wording import as_flags, one_line
from gritkit.errors import InputError

if TYPE_CHECKING:
    from gritkit.model import GritModel
    from gritkit.rag import AddReport, Document, Rag
    from gritkit.rag.manifest import Manifest

_MB = 1_000_000


def index(
    kb: Annotated[
        str,
        typer.Argument(
            metavar="KB", help="Folder of the knowledge base, or its address; it is made when there is none."
        ),
    ],
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Files, and folders of them.")],
    model: options.Model = None,
    jsonl_field: Annotated[
        str, typer.Option("--jsonl-field", metavar="NAME", help="What holds the text of a row: a field or column.")
    ] = "text",
    max_file_size: Annotated[
        float, typer.Option("--max-file-size", min=0.001, metavar="MB", help="Longest file, or row of a file of rows.")
    ] = 64,
    chunk_tokens: Annotated[
        int | None,
        typer.Option("--chunk-tokens", min=1, help="Longest chunk of a document; counts when the KB is made."),
    ] = None,
    chunk_overlap: Annotated[
        int | None,
        typer.Option("--chunk-overlap", min=0, help="Tokens that chunks share at most; counts when the KB is made."),
    ] = None,
    engine: engines.EngineOption = engines.Engine.local,
    ray_address: engines.RayAddress = None,
    num_actors: engines.NumActors = None,
    gpus_per_actor: engines.GpusPerActor = None,
    batch_size: engines.BatchSize = None,
    format: Annotated[
        options.Report, typer.Option("--format", help="The report as text on stderr, or as JSON on stdout.")
    ] = options.Report.text,
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    prompt_format: options.PromptFormat = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Read files into a knowledge base: text, Markdown, HTML, PDF, DOCX, source code, JSON lines, CSV and TSV.

    Folders are read with everything in them but hidden files and links. Each file is one document, named by its path;
    a row is one, named by its "id" or its line. Long documents are cut into chunks. Documents that did not change are
    skipped, so a run that was interrupted goes on. What cannot be read is listed at the end, the rest is indexed, and
    the exit code is 1.
    """
    files = _Files(engines.FileShare(paths, jsonl_field, int(max_file_size * _MB)))
    documents = files.documents()
    first = next(documents, None)
    if first is None:  # before a model is loaded, or a knowledge base made
        raise InputError("; ".join(files.failures[:3]) or "nothing to index: every file is empty")
    loading: dict[str, Any] = {
        "device": device,
        "dtype": dtype,
        "prompt_format": prompt_format,
        "trust_remote_code": trust_remote_code,
    }
    cluster = engines.Cluster(ray_address, num_actors, gpus_per_actor, batch_size)
    if engine is engines.Engine.ray:
        files = _Files(files.share)  # they are read again, by another process
        report, total, where = _added_on_ray(kb, model, loading, files, cluster, chunk_tokens, chunk_overlap)
    else:
        cluster.warn_of_no_effect()
        grit = open_model(model, **loading)
        with _opened(kb, grit, chunk_tokens, chunk_overlap) as rag:
            report = rag.add(itertools.chain([first], documents), on_error=files.failed, progress=True)
            total, where = len(rag), rag.base.where
    where = where if "://" in kb else kb  # an address without its password
    counts = {"added": report.added, "updated": report.updated, "skipped": report.skipped}
    counts["failed"] = len(files.failures)
    if format is options.Report.json:
        write(to_json({**counts, "documents": total, "failures": files.failures}) + "\n")
    else:
        note(", ".join(f"{count} {what}" for what, count in counts.items()) + f"; {where} holds {total} documents")
    if files.num_empty:
        note(f"{files.num_empty} empty files left out")
    if files.failures:
        for failure in files.failures:
            note(f"  {failure}")
        note(f"Error: {len(files.failures)} of {sum(counts.values())} could not be indexed; they are listed above")
        raise typer.Exit(1)


class _Files:
    """The documents of files while they are read, and what went wrong on the way."""

    def __init__(self, share: engines.FileShare) -> None:
        self.share = share
        self.failures: list[str] = []
        self.num_empty = 0

    def documents(self) -> Iterator[Document]:
        from gritkit.rag.sources import Failure

        for found in self.share(self._empty):
            if isinstance(found, Failure):
                self.failed(found.where, found.reason)
            else:
                yield found

    def failed(self, id: str, reason: str) -> None:
        """A document that the model or the knowledge base cannot take."""
        reason = reason.removeprefix(f"document {id!r:.200} cannot be added: ")
        self.failures.append(_as_options(f"{one_line(id)}: {reason}"))

    def _empty(self, _: str) -> None:
        self.num_empty += 1


def _opened(kb: str, model: GritModel, chunk_tokens: int | None, chunk_overlap: int | None) -> Rag:
    from gritkit.rag import Rag

    try:
        rag = Rag.open(kb, model, chunk_tokens=chunk_tokens, chunk_overlap=chunk_overlap)
    except InputError as error:
        raise InputError(_as_options(str(error))) from None
    _warn_of_no_effect(rag.base.manifest, chunk_tokens, chunk_overlap)
    return rag


def _added_on_ray(
    kb: str,
    model: str | None,
    loading: dict[str, Any],
    files: _Files,
    cluster: engines.Cluster,
    chunk_tokens: int | None,
    chunk_overlap: int | None,
) -> tuple[AddReport, int, str]:
    """What was done, how many documents there are then, and the knowledge base's name."""
    from gritkit.rag.base import KnowledgeBase

    try:
        report = engines.add_files_on_ray(
            kb,
            model,
            loading,
            files.share,
            cluster,
            chunk_tokens=chunk_tokens,
            chunk_overlap=chunk_overlap,
            on_error=files.failed,
        )
    except InputError as error:
        raise InputError(_as_options(str(error))) from None
    with KnowledgeBase.open(kb) as base:
        _warn_of_no_effect(base.manifest, chunk_tokens, chunk_overlap)
        return report, base.store.size().documents, base.where


def _warn_of_no_effect(made: Manifest, chunk_tokens: int | None, chunk_overlap: int | None) -> None:
    for flag, wanted, has in (
        ("--chunk-tokens", chunk_tokens, made.chunk_tokens),
        ("--chunk-overlap", chunk_overlap, made.chunk_overlap),
    ):
        if wanted not in (None, has):
            note(f"Warning: {flag} {wanted} has no effect: this knowledge base was made with {has}")


def _as_options(text: str) -> str:
    """A message of the library in words of this command."""
    text = as_flags(one_line(text)).replace("chunk_tokens=", "--chunk-tokens ")
    return text.replace("chunk_overlap=", "--chunk-overlap ").replace("raise max_file_bytes", "raise --max-file-size")


app = options.app_of(index)
