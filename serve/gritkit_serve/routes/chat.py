"""``/v1/chat/completions``: a conversation, and the assistant's answers.

This module knows nothing about threads, templates or stores.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Response

from gritkit.generation import decoder
from gritkit.generation.params import Completion, Delta, TokenLogprob
from gritkit.generation.sampling import Constraint
from gritkit_serve.engine import Engine
from gritkit_serve.routes.answers import (
    Answers,
    adapter_of,
    finish_reason,
    logprob_of,
    requests_of,
    room_for,
    salt_of,
)
from gritkit_serve.routes.replies import json_reply, new_id, streams_too
from gritkit_serve.routes.sse import DONE, Events, EventStream, event
from gritkit_serve.schemas.chat import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprob,
    ChatLogprobs,
    ChatRequest,
    JsonSchemaFormat,
    TextFormat,
    TopLogprob,
)
from gritkit_serve.service import CallDep, Service, ServiceDep

router = APIRouter(tags=["OpenAI"])


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=streams_too(ChatCompletion, ChatChunk))
async def chat_completions(body: ChatRequest, service: ServiceDep, call: CallDep) -> Response:
    """The assistant's answers to a conversation, whole or as events."""
    body.check(service.settings)
    adapter, n = adapter_of(service, body.model), body.n or 1
    requests = await service.engine.call(lambda: _requests(body, service))
    answers = Answers.start(service, requests, n=n, adapter=adapter, salt=salt_of(call, body), call=call)
    head = {"id": new_id("chatcmpl"), "created": int(time.time()), "model": body.model or service.model_name}
    reply = _Reply(head, answers, with_logprobs=bool(body.logprobs))
    if body.stream:
        return EventStream(reply.chunks(include_usage=body.include_usage), request_id=call.id, close=answers.cancel)
    return json_reply(reply.whole(await answers.finished()))


def _requests(body: ChatRequest, service: Service) -> list[decoder.Request]:
    """Prompt and constraint of every answer."""
    tokens, n = service.model.tokens, body.n or 1
    ids = tokens.chat_prompt([message.message() for message in body.messages])
    asked = body.max_completion_tokens or body.max_tokens
    room = room_for(service, ids, asked, service.settings.default_max_tokens)
    top_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    first = decoder.Request(ids, body.params(room), top_logprobs=top_logprobs)
    return requests_of(first, n, _constraints(body, service.engine, n))


def _constraints(body: ChatRequest, engine: Engine, n: int) -> list[Constraint]:
    """One for each answer, where the answers are to be JSON."""
    wanted = body.response_format
    if wanted is None or isinstance(wanted, TextFormat):
        return []
    schema = wanted.json_schema.definition if isinstance(wanted, JsonSchemaFormat) else None
    return [engine.json_constraint(schema) for _ in range(n)]


@dataclass(frozen=True)
class _Reply:
    """What is said about the answers."""

    head: dict[str, Any]
    answers: Answers
    with_logprobs: bool

    def whole(self, completions: Sequence[Completion]) -> ChatCompletion:
        """All of it."""
        choices = [
            ChatChoice(
                index=index,
                message=AnswerMessage(content=completion.text),
                logprobs=self._logprobs(completion.logprobs),
                finish_reason=finish_reason(completion),
            )
            for index, completion in enumerate(completions)
        ]
        return ChatCompletion(**self.head, choices=choices, usage=self.answers.usage(completions))

    async def chunks(self, *, include_usage: bool) -> Events:
        """The same as events."""
        dropped = None if include_usage else {"usage"}  # null in all chunks but the last, as in the OpenAI API

        def chunk(choice: ChatChunkChoice) -> bytes:
            return event(ChatChunk(**self.head, choices=[choice]).model_dump_json(exclude=dropped))

        for index in range(len(self.answers.generations)):
            yield chunk(ChatChunkChoice(index=index, delta=ChatDelta(role="assistant", content="")))
        completions: dict[int, Completion] = {}
        async with aclosing(self.answers.events()) as events:
            async for index, happened in events:
                if isinstance(happened, Delta):
                    delta, logprobs = ChatDelta(content=happened.text), self._logprobs(happened.logprobs)
                    yield chunk(ChatChunkChoice(index=index, delta=delta, logprobs=logprobs))
                else:
                    completions[index] = happened.completion
                    reason = finish_reason(happened.completion)
                    yield chunk(ChatChunkChoice(index=index, delta=ChatDelta(), finish_reason=reason))
        usage = self.answers.usage([completions[index] for index in sorted(completions)])
        if include_usage:
            yield event(ChatChunk(**self.head, choices=[], usage=usage).model_dump_json())
        yield DONE

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> ChatLogprobs | None:
        return ChatLogprobs(content=[_logprob(token) for token in tokens]) if self.with_logprobs else None


def _logprob(token: TokenLogprob) -> ChatLogprob:
    likeliest = [TopLogprob(token=other.token, logprob=logprob_of(other), bytes=list(other.raw)) for other in token.top]
    return ChatLogprob(token=token.token, logprob=logprob_of(token), bytes=list(token.raw), top_logprobs=likeliest)
