"""``gritkit ask``: a question -> an answer from a knowledge base, its sources and how long it took.

This module knows nothing about retrieval or caches; ``gritkit.rag`` does.
"""

from __future__ import annotations

import dataclasses
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
from gritkit.files import resolve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gritkit.rag import Answer, Hit, RagEvent


class Reuse(str, Enum):
    """Of the key-values that were stored when the documents were indexed."""

    auto = "auto"
    cached = "cached"
    off = "off"


def ask(
    kb: Annotated[str, typer.Argument(metavar="KB", help="Folder of the knowledge base.")],
    question: Annotated[
        str | None, typer.Argument(metavar="[QUESTION]", help="What to answer; '-' or none reads stdin.")
    ] = None,
    model: options.Model = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="How many documents to answer from.")] = 3,
    reuse: Annotated[
        Reuse, typer.Option("--reuse", help="Start from stored key-values (cached) or read again (off).")
    ] = Reuse.auto,
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
            reuse=reuse.value,
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
        f"reuse {answer.reuse}: {usage.cached_tokens} of {usage.prompt_tokens} prompt tokens were not computed again; "
        f"{usage.completion_tokens} generated\n{times}"
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


def _refuse_new(kb: str) -> None:
    """A knowledge base is made by indexing; a mistyped name must not make an empty one."""
    from gritkit.rag.manifest import FILE_NAME

    if "://" not in kb and not (resolve(kb) / FILE_NAME).is_file():
        raise StoreError(f"no knowledge base at {kb}: make one with 'gritkit index {kb} PATHS...'")


app = options.app_of(ask)
