"""``gritkit rerank``: documents -> their order for a query, by how likely the query is given each.

This module knows nothing about models beyond ``GritModel.rerank``.
"""

from __future__ import annotations

from typing import Annotated

import typer

from gritkit.cli import options
from gritkit.cli.input import read_texts
from gritkit.cli.loading import open_model
from gritkit.cli.options import Listing
from gritkit.cli.output import listing, table, to_json, write


def rerank(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What is asked.")],
    documents: Annotated[
        list[str] | None, typer.Argument(metavar="DOC...", help="Documents; '-' or none reads stdin.")
    ] = None,
    file: options.File = None,
    jsonl_field: options.JsonlField = None,
    model: options.Model = None,
    top_n: Annotated[int | None, typer.Option("--top-n", help="Show only the best.")] = None,
    truncate: options.Truncate = False,
    format: Annotated[Listing, typer.Option("--format", help="What to write.")] = Listing.table,
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    prompt_format: options.PromptFormat = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Order documents by how well they answer a query, best first.

    The score is the (geometric) mean probability of the query's tokens given the document, between 0 and 1. index is
    the document's place in the input, from 0.
    """
    given = read_texts(documents, file, jsonl_field, what="document")
    grit = open_model(
        model, device=device, dtype=dtype, prompt_format=prompt_format, trust_remote_code=trust_remote_code
    )
    ranked = grit.rerank(query, given, top_n=top_n, truncate=truncate, progress=True)
    if format is Listing.table:
        rows = [(f"{place.score:.4g}", str(place.index), given[place.index]) for place in ranked]
        write(table(("score", "index", "document"), rows))
        return
    objects = [to_json({"index": p.index, "score": p.score, "text": given[p.index]}) for p in ranked]
    write(listing(objects, lines=format is Listing.jsonl))


app = options.app_of(rerank)
