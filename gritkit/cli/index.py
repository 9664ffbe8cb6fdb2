"""``gritkit index``: files -> a knowledge base, each file or JSONL row one document.

This module knows nothing about stores or vectors; ``gritkit.rag`` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from gritkit.cli import options
from gritkit.cli.collect import Found, collect
from gritkit.cli.loading import open_model
from gritkit.cli.output import note, to_json, write
from gritkit.cli.wording import as_flags, one_line
from gritkit.errors import InputError

if TYPE_CHECKING:
    from gritkit.model import GritModel
    from gritkit.rag import Document


def index(
    kb: Annotated[str, typer.Argument(metavar="KB", help="Folder of the knowledge base; made when there is none.")],
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Text files, and folders of them.")],
    model: options.Model = None,
    jsonl_field: Annotated[str, typer.Option("--jsonl-field", help="What holds the text of a JSONL row.")] = "text",
    truncate: options.Truncate = False,
    format: Annotated[
        options.Report, typer.Option("--format", help="The report as text on stderr, or as JSON on stdout.")
    ] = options.Report.text,
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    prompt_format: options.PromptFormat = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Read files into a knowledge base: text, Markdown, source code, and JSON lines; folders recursively.

    Each file is one document, named by its path; a JSONL row is one, named by its "id" field or its line. Documents
    that did not change are skipped. What cannot be read is listed at the end, the rest is indexed, and the exit code
    is 1.
    """
    found = collect(paths, jsonl_field)
    if not found.texts:
        raise InputError("; ".join(found.failures[:3]) or "nothing to index: every file is empty")
    grit = open_model(
        model, device=device, dtype=dtype, prompt_format=prompt_format, trust_remote_code=trust_remote_code
    )
    from gritkit.rag import Rag

    documents, too_long = fitting(grit, found.texts, truncate)
    failures = found.failures + too_long
    with Rag.open(kb, grit) as rag:
        report = rag.add(documents, truncate=truncate, progress=True)
        total = len(rag)
    counts = {"added": report.added, "updated": report.updated, "skipped": report.skipped, "failed": len(failures)}
    if format is options.Report.json:
        write(to_json({**counts, "documents": total, "failures": failures}) + "\n")
    else:
        note(", ".join(f"{count} {what}" for what, count in counts.items()) + f"; {kb} holds {total} documents")
    if found.num_empty:
        note(f"{found.num_empty} empty files left out")
    if failures:
        for failure in failures:
            note(f"  {failure}")
        note(f"Error: {len(failures)} of {len(failures) + len(documents)} could not be indexed; they are listed above")
        raise typer.Exit(1)


def fitting(model: GritModel, texts: Sequence[Found], truncate: bool) -> tuple[list[Document], list[str]]:
    """The documents that the model can read, and a line for each of the others."""
    from gritkit.rag import Document

    limit = min(model.embedding_config.max_length, model.context_length)
    documents, failures = [], []
    for found in texts:
        try:
            model.tokens.to_embed([found.text], "passage", None, limit, truncate=truncate)
            documents.append(Document(found.text, id=found.id, metadata=found.metadata))
        except InputError as error:
            reason = one_line(str(error)).replace("raise max_length, split the text", "split it")
            failures.append(f"{found.id}: {as_flags(reason.removeprefix('text 0 '))}")
    return documents, failures


app = options.app_of(index)
