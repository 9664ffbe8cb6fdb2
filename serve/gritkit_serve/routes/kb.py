"""``/v1/kb``: knowledge bases, searches in them and answers from them. Their documents: ``routes.kb_documents``.

This module knows nothing about threads, stores or how answers are made.
"""

from __future__ import annotations

from contextlib import ExitStack, aclosing
from typing import Annotated

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel

from gritkit.generation.params import Completion, Delta
from gritkit_serve.base_looks import Facts
from gritkit_serve.calls import Call
from gritkit_serve.kb_answers import MAX_NEW_TOKENS, Finding, Ready, bases_of, passages_of, sources_of
from gritkit_serve.routes.answers import Answers, finish_reason
from gritkit_serve.routes.replies import json_reply, streams_too
from gritkit_serve.routes.sse import DONE, Events, EventStream, event
from gritkit_serve.schemas.kb import (
    FIXED,
    KB_ERRORS,
    AskReply,
    AskRequest,
    BaseInfo,
    BaseList,
    Deleted,
    DeltaEvent,
    NewBase,
    SearchReply,
    SearchRequest,
    SourcesEvent,
)
from gritkit_serve.service import CallDep, Service, ServiceDep

router = APIRouter(tags=["knowledge bases"], responses=KB_ERRORS)

BaseName = Annotated[str, Path(description="Of a knowledge base: a-z, 0-9, _ and -, at most 63 of them.")]


@router.get("/v1/kb")
async def list_bases(service: ServiceDep) -> BaseList:
    """All knowledge bases of this server, by name."""
    if service.bases is None and service.state != "loading":
        return BaseList(data=[], fixed=True)
    bases = bases_of(service)
    return BaseList(data=[_info(facts) for facts in await bases.all_facts()], fixed=bases.single is not None)


@router.post("/v1/kb", status_code=201, responses=FIXED)
async def create_base(body: NewBase, service: ServiceDep) -> BaseInfo:
    """Make a knowledge base."""
    bases = bases_of(service)
    await bases.create(
        body.name,
        codec=body.codec,
        chunk_tokens=body.chunk_tokens,
        chunk_overlap=body.chunk_overlap,
        instruction=body.instruction,
    )
    return _info(await bases.facts(body.name))


@router.get("/v1/kb/{name}")
async def look_at_base(name: BaseName, service: ServiceDep) -> BaseInfo:
    """What a knowledge base holds."""
    return _info(await bases_of(service).facts(name))


@router.delete("/v1/kb/{name}", responses=FIXED)
async def delete_base(name: BaseName, service: ServiceDep) -> Deleted:
    """Remove a knowledge base with everything in it."""
    await bases_of(service).delete(name)
    return Deleted(name=name)


@router.post("/v1/kb/{name}/search")
async def search_base(name: BaseName, body: SearchRequest, service: ServiceDep) -> SearchReply:
    """The passages that suit a query best, best first."""
    body.check(service.settings)
    hits = await bases_of(service).read(name, lambda rag: rag.search(body.query, **body.options()))
    service.metrics.kb_searches.labels(body.by or "dense").inc()
    return SearchReply(data=passages_of(hits))


@router.post("/v1/kb/{name}/ask", response_model=AskReply, responses=streams_too(AskReply, DeltaEvent))
async def ask_base(name: BaseName, body: AskRequest, service: ServiceDep, call: CallDep) -> Response:
    """An answer from a knowledge base, and the passages that it stands on.

    With stream=true: the events ``sources``, any number of ``delta``, ``answer``, then ``[DONE]``.
    """
    body.check(service.settings)
    params = body.params(min(MAX_NEW_TOKENS, service.settings.default_max_tokens))
    answer = _Answer(service, call, Finding(service, name, body.question, body, params))
    with ExitStack() as held:
        held.callback(answer.close)
        if not body.stream:
            return json_reply(await answer.whole())
        sources = await answer.sources()  # what cannot be answered has a status of its own
        held.pop_all()
    return EventStream(answer.events(sources), request_id=call.id, close=answer.close)


class _Answer:
    """One answer, while it comes."""

    def __init__(self, service: Service, call: Call, finding: Finding) -> None:
        self._service = service
        self._call = call
        self._finding = finding
        self._answers: Answers | None = None

    def close(self) -> None:
        """Nobody waits for it any more, or it is whole."""
        self._finding.close()
        if self._answers is not None:
            self._answers.cancel()

    async def whole(self) -> AskReply:
        ready = await self._finding.ready()
        (completion,) = await self._started(ready).finished()
        return self._reply(ready, completion)

    async def sources(self) -> SourcesEvent:
        return sources_of(await self._finding.found())

    async def events(self, sources: SourcesEvent) -> Events:
        yield _named("sources", sources)
        ready = await self._finding.ready()
        async with aclosing(self._started(ready).events()) as events:
            async for _, happened in events:
                if isinstance(happened, Delta):
                    yield _named("delta", DeltaEvent(text=happened.text))
                else:
                    yield _named("answer", self._reply(ready, happened.completion))
        yield DONE

    def _started(self, ready: Ready) -> Answers:
        requests = [ready.request]
        self._answers = Answers.start(self._service, requests, n=1, adapter=None, salt=self._call.salt, call=self._call)
        return self._answers

    def _reply(self, ready: Ready, completion: Completion) -> AskReply:
        assert self._answers is not None
        sources, prepared = sources_of(ready.question), ready.prepared
        return AskReply(
            sources=sources.sources,
            dropped=sources.dropped,
            text=completion.text,
            reuse=prepared.way.reuse,
            reason=prepared.way.reason,
            recomputed=prepared.recomputed,
            timings=ready.timings(self._call),
            usage=self._answers.usage([completion]),
            finish_reason=finish_reason(completion),
        )


def _named(name: str, data: BaseModel) -> bytes:
    return event(data.model_dump_json(), name=name)


def _info(facts: Facts) -> BaseInfo:
    stats = facts.stats
    return BaseInfo(
        name=facts.name,
        documents=stats.documents if stats else 0,
        chunks=stats.chunks if stats else 0,
        bytes=stats.bytes if stats else 0,
        block_bytes=stats.block_bytes if stats else 0,
        codec=stats.codec if stats else None,
        chunk_tokens=stats.chunk_tokens if stats else None,
        chunk_overlap=stats.chunk_overlap if stats else None,
        dim=stats.dim if stats else None,
        prompt_format=stats.prompt_format if stats else None,
        instruction=facts.instruction,
        problem=facts.problem,
    )
