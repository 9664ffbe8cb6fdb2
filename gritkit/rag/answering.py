"""From the documents that were found to an answer: which of them fit, how they are joined, and the stream of events.

The best document stands last, next to the question, where a sliding window sees it and attention is strongest; the
beginning-of-text tokens of all but the first are left out.

This module knows nothing about stores or where key-values are kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from gritkit.errors import InputError
from gritkit.generation.decoder import Request
from gritkit.generation.params import Delta, Finished, SamplingParams
from gritkit.kv.dockv import DocKV
from gritkit.model import GritModel
from gritkit.rag.documents import Answer, Hit, RagEvent, Reuse, Sources, Timings
from gritkit.rag.store import Row


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
    """A document that was found: as the user sees it, and as it is stored."""

    hit: Hit
    row: Row


@dataclass(frozen=True)
class Question:
    """One answer to be made."""

    prompt_ids: Sequence[int]
    used: Sequence[Found]
    """Best first."""
    dropped: Sequence[Found]
    num_bos: int
    params: SamplingParams
    reuse: Reuse
    searched: float
    """Seconds on the clock when the documents were found."""


def fitting(found: Sequence[Found], num_bos: int, needed: int, context_length: int) -> tuple[list[Found], list[Found]]:
    """(documents that fit beside ``needed`` tokens of question and answer, those that do not), each best first.

    Raises:
        InputError: when none fits.
    """
    used: list[Found] = []
    dropped: list[Found] = []
    room = context_length - needed
    for one in found:
        size = len(one.row.token_ids) - (num_bos if used else 0)
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


def joined_ids(rows: Sequence[Row], num_bos: int) -> list[int]:
    """The tokens of documents one after the other, exactly as their key-values are joined."""
    return [token for index, row in enumerate(rows) for token in row.token_ids[num_bos if index else 0 :]]


def answer_events(
    model: GritModel,
    question: Question,
    load: Callable[[Sequence[Row]], tuple[list[DocKV], int]],
    clock: Clock,
) -> Iterator[RagEvent]:
    """Sources, Deltas, Answer. ``load`` fetches key-values, and says how many it had to compute again."""
    sources, dropped = ([one.hit for one in some] for some in (question.used, question.dropped))
    since = clock.seconds
    yield Sources(sources, dropped)
    clock.leave_out(since)

    before = clock.seconds
    rows = [one.row for one in question.used][::-1]
    recomputed = 0
    if question.reuse == "cached":
        documents, recomputed = load(rows)
        request = Request(question.prompt_ids, question.params, documents)
    else:
        request = Request([*joined_ids(rows, question.num_bos), *question.prompt_ids], question.params)
    loaded = clock.seconds - before

    needed = request.num_cached + len(request.prompt_ids) + request.params.max_new_tokens
    decoder = model.decoder(num_slots=1, max_length=needed)
    number = decoder.join(request)
    first_token = None
    while decoder.busy:
        events = decoder.step()
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
                    reuse=question.reuse,
                    timings=timings,
                    usage=done.usage,
                    finish_reason=done.finish_reason,
                    dropped=dropped,
                    recomputed=recomputed,
                )
            else:
                since = clock.seconds
                yield Delta(0, event.text)
            clock.leave_out(since)
