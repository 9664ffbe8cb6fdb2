"""From the documents that were found to an answer: which of them fit, how they are joined, and the stream of events.

The best document stands last, next to the question, where a sliding window sees it and attention is strongest; what all
but the first leave out is the way's ``join``.

This module knows nothing about stores or where key-values are kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from gritkit.embedding import num_prompt
from gritkit.errors import InputError, StoreError
from gritkit.generation.decoder import Request
from gritkit.generation.params import Delta, Finished, SamplingParams, raising
from gritkit.kv.dockv import Join, ReadDocument
from gritkit.model import GritModel
from gritkit.prompts import Message
from gritkit.rag.documents import Answer, Hit, RagEvent, Sources, Timings
from gritkit.rag.ladder import Way
from gritkit.rag.store import Row
from gritkit.tokens import TokenSeq


class Clock:
    """Seconds since it was made, without what was left out: the time that a reader of the stream takes."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start

    def leave_out(self, since: float) -> None:
        """Do not count the time from ``since`` (of :attr:`seconds`) until now."""
        self._start += self.seconds - since


@dataclass(frozen=True)
class Found:
    """A chunk that was found: as the user sees it, and as it is stored."""

    hit: Hit
    row: Row


@dataclass(frozen=True)
class Question:
    """One answer to be made."""

    text: str
    used: Sequence[Found]
    """Best first."""
    dropped: Sequence[Found]
    params: SamplingParams
    searched: float
    """Seconds on the clock when the documents were found."""
    earlier: Sequence[Message] = ()
    """The conversation that led to it."""

    @property
    def rows(self) -> list[Row]:
        """The chunks in the order of the prompt: the best last."""
        return [one.row for one in self.used][::-1]


@dataclass(frozen=True)
class Prepared:
    """A request whose documents are at hand."""

    request: Request
    way: Way
    recomputed: int = 0
    """Sources whose key-values were missing or damaged, and were computed again."""


def fitting(
    found: Sequence[Found], needed: int, num_left_out: int, context_length: int
) -> tuple[list[Found], list[Found]]:
    """(chunks that fit beside ``needed`` tokens of question and answer, those that do not), each best first.

    All but one leave out so many of their own, at least.

    Raises:
        InputError: when none fits.
    """
    used: list[Found] = []
    dropped: list[Found] = []
    room = context_length - needed
    for one in found:
        size = len(one.row.token_ids) - (num_left_out if used else 0)
        if size <= room:
            used.append(one)
            room -= size
        else:
            dropped.append(one)
    if not used:
        shortest = min(len(one.row.token_ids) for one in found)
        raise InputError(
            f"no document fits: question and answer take {needed} of the context's {context_length} tokens and the "
            f"shortest document found has {shortest}: lower max_new_tokens or shorten the question"
        )
    return used, dropped


def joined_tokens(rows: Sequence[Row], left_out: Sequence[int]) -> list[int]:
    """The tokens of chunks one after the other, all but the first without so many of their own."""
    return [
        token
        for index, (row, out) in enumerate(zip(rows, left_out, strict=True))
        for token in row.token_ids[out if index else 0 :]
    ]


def num_left_out(model: GritModel, join: Join, rows: Sequence[Row]) -> list[int]:
    """How many leading tokens each of these passages leaves out where it follows another."""
    if join == "text":  # where a text begins is for the tokenizer to say: its first word may take a space of the prompt
        return [num_prompt(tokens_of(model, row)) for row in rows]
    return [len(model.tokens.bos_ids) if join == "no-bos" else 0] * len(rows)


def tokens_of(model: GritModel, row: Row) -> TokenSeq:
    """A stored chunk as it was read. Raises StoreError where this model's prompt format has it otherwise."""
    (tokens,) = model.tokens.to_embed([row.text], "passage", None, model.context_length, truncate=False)
    if tuple(tokens.ids.tolist()) != row.token_ids:
        raise StoreError(
            f"document {row.document!r:.200} was read in another prompt format than today's: index it again"
        )
    return tokens


def paper_request(
    model: GritModel, question: Question, query: ReadDocument, documents: Sequence[ReadDocument], way: Way
) -> Request:
    """One of the GRIT paper's arrangements of cached queries and documents (arXiv 2402.09906, figure 5)."""
    form, encode = model.tokens.format, model.tokens.encode
    if way.reuse == "query":
        text = "\n\n".join(row.text for row in question.rows)
        prompt = encode(form.ask_before.replace("{document}", text))
        return Request(prompt, question.params, [query])
    if way.reuse == "query_doc":
        return Request(encode(form.ask_between), question.params, [query, *documents], way.join)
    return Request(encode(form.ask_after), question.params, [*documents, query], way.join)


def answer_events(
    model: GritModel, question: Question, prepare: Callable[[], Prepared], clock: Clock
) -> Iterator[RagEvent]:
    """Sources, Deltas, Answer. ``prepare`` fetches key-values, after the sources were shown."""
    sources, dropped = ([one.hit for one in some] for some in (question.used, question.dropped))
    since = clock.seconds
    yield Sources(sources, dropped)
    clock.leave_out(since)

    before = clock.seconds
    prepared = prepare()
    request, way = prepared.request, prepared.way
    loaded = clock.seconds - before

    needed = request.num_laid + len(request.prompt_ids) + request.params.max_new_tokens
    decoder = model.decoder(num_slots=1, max_length=needed, prefill_chunk=len(request.prompt_ids))
    number = decoder.join(request)
    first_token = None
    while decoder.busy:
        events = list(raising(decoder.step()))
        if first_token is None and (decoder.num_produced(number) or not decoder.busy):
            first_token = clock.seconds
        for event in events:
            if isinstance(event, Finished):
                done = event.completion
                timings = Timings(question.searched, loaded, first_token or clock.seconds, clock.seconds)
                since = clock.seconds
                yield Answer(
                    text=done.text,
                    sources=sources,
                    reuse=way.reuse,
                    reason=way.reason,
                    timings=timings,
                    usage=done.usage,
                    finish_reason=done.finish_reason,
                    dropped=dropped,
                    recomputed=prepared.recomputed,
                )
            else:
                since = clock.seconds
                yield Delta(0, event.text)
            clock.leave_out(since)
