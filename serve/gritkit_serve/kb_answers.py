"""A question to a knowledge base -> the passages it is answered from -> the request that the engine is to run.

    finding = Finding(service, name, text, wanted, params)
    question = await finding.found()         as soon as they are known: a client can be shown its sources
    ready = await finding.ready()            their key-values are loaded: ``ready.request`` goes to the engine

Both halves are :meth:`gritkit.rag.Rag.find` and :meth:`~gritkit.rag.Rag.prepare`, in one worker thread one after the
other; the answer decodes in the engine together with everybody else's, and is the one that ``Rag.ask`` gives.

This module knows nothing about HTTP messages, or about how documents are searched and kept.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gritkit.generation.decoder import Request
from gritkit.generation.params import SamplingParams
from gritkit.prompts import Message
from gritkit.rag import Hit, Rag
from gritkit.rag.answering import Prepared, Question
from gritkit_serve.bases import Bases
from gritkit_serve.calls import Call
from gritkit_serve.errors import NotFoundError
from gritkit_serve.placement import placement
from gritkit_serve.schemas.kb import Answering, Passage, SourcesEvent, Timings
from gritkit_serve.service import Service

MAX_NEW_TOKENS = 256
"""Of an answer from documents where nobody says otherwise, as in ``gritkit.rag``: they leave the context what they
leave."""


@dataclass(frozen=True)
class Ready:
    """A request with its documents at hand."""

    question: Question
    prepared: Prepared
    loaded: float
    """Seconds that their key-values took."""

    @property
    def request(self) -> Request:
        return self.prepared.request

    def timings(self, call: Call) -> Timings:
        """Of an answer that is whole now, since its request came."""
        total = time.perf_counter() - call.started
        first = total if call.first_token_s is None else call.first_token_s  # an answer without a word has no first one
        times = {"search": self.question.searched, "load": self.loaded, "first_token": first, "total": total}
        return Timings(**{name: round(1e3 * seconds, 3) for name, seconds in times.items()})


class Finding:
    """One question on its way to the engine. Made in a coroutine, it begins to search.

    ``close`` it when nobody waits for it any more.
    """

    def __init__(
        self,
        service: Service,
        name: str,
        text: str,
        wanted: Answering,
        params: SamplingParams,
        *,
        earlier: Sequence[Message] = (),
    ) -> None:
        """``earlier`` is the conversation that led to the question."""
        self._service = service
        self._wanted = wanted
        self._found: asyncio.Future[Question] = asyncio.get_running_loop().create_future()
        self._task = asyncio.ensure_future(self._ready(name, text, params, earlier))

    async def found(self) -> Question:
        """The passages, best first. Raises what the search raises."""
        both: set[asyncio.Future[Any]] = {self._task, self._found}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        return self._found.result() if self._found.done() else (await self._task).question

    async def ready(self) -> Ready:
        """Raises what the search and loading raise."""
        return await self._task

    def close(self) -> None:
        """Let it be; nothing happens to one that is ready."""
        self._task.cancel()

    async def _ready(self, name: str, text: str, params: SamplingParams, earlier: Sequence[Message]) -> Ready:
        engine, metrics, wanted = self._service.engine, self._service.metrics, self._wanted
        loop, reuse, place = asyncio.get_running_loop(), wanted.reuse or "auto", placement.get()

        def work(rag: Rag) -> Ready:
            join = rag.joined(reuse, wanted.join, wanted.link_tokens)
            question = place.found if place is not None else None
            if question is None:
                room, options = engine.slot_tokens, wanted.options()
                question = rag.find(text, **options, join=join, params=params, max_tokens=room, earlier=earlier)
            if place is not None:
                place.settle(question)
            loop.call_soon_threadsafe(self._tell, question)
            since = time.perf_counter()
            prepared = rag.prepare(question, reuse, join, wanted.link_tokens)
            return Ready(question, prepared, time.perf_counter() - since)

        ready = await bases_of(self._service).read(name, work)
        metrics.kb_searches.labels(wanted.by or "dense").inc()
        metrics.kb_answers.labels(ready.prepared.way.reuse).inc()
        return ready

    def _tell(self, question: Question) -> None:
        if not self._found.done():
            self._found.set_result(question)


def bases_of(service: Service) -> Bases:
    """Raises HttpError (503) until the model is loaded, NotFoundError where the server was started without --kb."""
    _ = service.engine
    if service.bases is None:
        raise NotFoundError("this server has no knowledge bases: start it with --kb FOLDER", code="kb_not_found")
    return service.bases


def passages_of(hits: Sequence[Hit]) -> list[Passage]:
    """As a client gets them."""
    return [Passage(id=hit.id, chunk=hit.chunk, text=hit.text, score=hit.score, metadata=hit.metadata) for hit in hits]


def sources_of(question: Question) -> SourcesEvent:
    """What an answer reads, and what has no room in it."""
    used, dropped = ([one.hit for one in some] for some in (question.used, question.dropped))
    return SourcesEvent(sources=passages_of(used), dropped=passages_of(dropped))
