"""``gritkit ask``: a question -> an answer from a knowledge base, its sources and how long it took.

This module knows nothing about retrieval or caches; ``gritkit.rag`` does.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gritkit.cli import options
from gritkit.cli.input import DASH, read_source
from gritkit.cli.loading import open_model
from gritkit.cli.output import note, to_json, write
from gritkit.cli.wording import one_line
from gritkit.errors import InputError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gritkit.rag import Answer, Hit, RagEvent


class Reuse(str, Enum):
    """How an answer comes by the key-values that were stored when its documents were indexed."""

    auto = "auto"
    prefix = "prefix"
    cached = "cached"
    linked = "linked"
    off = "off"
    query = "query"
    query_doc = "query_doc"
    doc_query = "doc_query"


class Join(str, Enum):
    """What every document but the first leaves out."""

    no_bos = "no-bos"
    text = "text"
    whole = "whole"


class Search(str, Enum):
    """What documents are found by."""

    dense = "dense"
    text = "text"
    hybrid = "hybrid"


def ask(
    kb: Annotated[
        str,
        typer.Argument(metavar="KB", help="Folder of the knowledge base, or its s3://, gs://, az:// or postgresql://."),
    ],
    question: Annotated[
        str | None, typer.Argument(metavar="[QUESTION]", help="What to answer; '-' or none reads stdin.")
    ] = None,
    model: options.Model = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="How many documents to answer from.")] = 3,
    search: Annotated[
        Search, typer.Option("--search", help="Find them by vectors (dense), by words (text), or by both (hybrid).")
    ] = Search.dense,
    rerank: Annotated[
        bool, typer.Option("--rerank", help="Find four times as many and keep those that make the question likeliest.")
    ] = False,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where",
            metavar="KEY=VALUE",
            help="Only documents with this metadata; VALUE is JSON, or else text; may be given again.",
        ),
    ] = None,
    reuse: Annotated[
        Reuse,
        typer.Option(
            "--reuse",
            help="Start from key-values of this beginning of the prompt (prefix), of each document (cached), the same "
            "with the first tokens of each computed again (linked), or read everything (off). auto decides; query, "
            "query_doc and doc_query are those of the GRIT paper.",
        ),
    ] = Reuse.auto,
    join: Annotated[
        Join | None,
        typer.Option(
            "--join",
            help="What all documents but the first leave out: their beginning of text (no-bos), their whole prompt "
            "(text), nothing (whole); by default as the gate found best.",
        ),
    ] = None,
    link_tokens: Annotated[
        int | None, typer.Option("--link-tokens", min=1, help="How many tokens of each linked computes again.")
    ] = None,
    format: Annotated[options.Report, typer.Option("--format", help="What to write.")] = options.Report.text,
    max_new_tokens: options.MaxNewTokens = 256,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    stop: options.Stop = None,
    seed: options.Seed = None,
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    prompt_format: options.PromptFormat = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Answer a question from a knowledge base: the answer on stdout, its sources and timings on stderr.

    With --format json everything goes to stdout as one object.
    """
    if link_tokens is not None and reuse is not Reuse.linked:
        raise typer.BadParameter("--link-tokens goes with --reuse linked alone")
    conditions = _conditions(where or [])
    text = _question(question)
    _refuse_new(kb)
    grit = open_model(
        model, device=device, dtype=dtype, prompt_format=prompt_format, trust_remote_code=trust_remote_code
    )
    from gritkit.rag import Rag

    with Rag.open(kb, grit) as rag:
        events = rag.stream(
            text,
            top_k=top_k,
            where=conditions,
            by=search.value,
            rerank=rerank,
            reuse=reuse.value,
            join=None if join is None else join.value,
            link_tokens=link_tokens,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            stop=tuple(stop or ()),
            seed=seed,
        )
        if format is options.Report.json:
            *_, answer = events
            write(to_json(dataclasses.asdict(answer)) + "\n")
        else:
            show(events)


def show(events: Iterator[RagEvent]) -> None:
    """Sources to stderr, the answer to stdout as it comes, timings to stderr."""
    from gritkit.rag import Answer, Delta, Sources

    for event in events:
        if isinstance(event, Sources):
            for number, hit in enumerate(event.sources, 1):
                note(_source(f"[{number}]", hit))
            for hit in event.dropped:
                note(_source("[-]", hit) + "  (no room in the context)")
        elif isinstance(event, Delta):
            write(event.text)
        elif isinstance(event, Answer):
            write("\n")
            note(_timings(event))


def _source(label: str, hit: Hit) -> str:
    text = one_line(hit.text)
    return f"{label} {hit.score:.3f}  {hit.id}  {text if len(text) <= 60 else text[:59] + '…'}"


def _timings(answer: Answer) -> str:
    times = "  ".join(f"{name.replace('_', ' ')} {value * 1000:.0f} ms" for name, value in _seconds(answer.timings))
    usage = answer.usage
    return (
        f"reuse {answer.reuse} ({answer.reason}): {usage.cached_tokens} of {usage.prompt_tokens} prompt tokens were "
        f"not computed again; {usage.completion_tokens} generated\n{times}"
    )


def _seconds(timings: Any) -> list[tuple[str, float]]:
    return [(field.name, getattr(timings, field.name)) for field in dataclasses.fields(timings)]


def _question(given: str | None) -> str:
    if given not in (None, DASH):
        return str(given)
    if given is None and sys.stdin.isatty():
        raise typer.BadParameter("no question: give it as an argument or on stdin")
    text = read_source(None)[1].strip()
    if not text:
        raise InputError("stdin is empty: there is no question to answer")
    return text


def _conditions(given: list[str]) -> dict[str, Any] | None:
    """What metadata must have: each VALUE as JSON (2020, true, null, "2020"), or as the text that it is."""
    conditions: dict[str, Any] = {}
    for one in given:
        key, equals, value = one.partition("=")
        if not equals:
            raise typer.BadParameter(f"--where {one!r:.60} is not KEY=VALUE")
        try:
            conditions[key] = json.loads(value)
        except (ValueError, RecursionError):
            conditions[key] = value
    return conditions or None


def _refuse_new(kb: str) -> None:
    """A knowledge base is made by indexing; a mistyped name must not make an empty one."""
    from gritkit.rag.place import place_of

    place = place_of(kb)
    if place.read() is None:
        name = place.name if "://" in kb else kb
        raise StoreError(f"no knowledge base at {name}: make one with 'gritkit index {name} PATHS...'")


app = options.app_of(ask)
