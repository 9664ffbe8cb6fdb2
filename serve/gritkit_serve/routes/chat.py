"""``/v1/chat/completions``: a conversation, maybe a knowledge base, and the assistant's answers.

This module knows nothing about threads, templates or stores.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, Response

from gritkit.generation import decoder
from gritkit.generation.params import Completion, Delta, TokenLogprob
from gritkit.generation.sampling import Constraint
from gritkit.prompts import Message
from gritkit_serve.engine import Engine
from gritkit_serve.kb_answers import MAX_NEW_TOKENS
from gritkit_serve.kb_chat import Retrieved, retrieve_for_chat
from gritkit_serve.routes.answers import (
    Answers,
    adapter_of,
    finish_reason,
    logprob_of,
    requests_of,
    room_for,
    salt_of,
)
from gritkit_serve.routes.length import check_length
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
from gritkit_serve.schemas.kb import KB_ERRORS, ChatSources
from gritkit_serve.service import CallDep, Service, ServiceDep

router = APIRouter(tags=["OpenAI"])

_RESPONSES = streams_too(ChatCompletion, ChatChunk) | {status: KB_ERRORS[status] for status in (409, 501)}


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=_RESPONSES)
async def chat_completions(body: ChatRequest, service: ServiceDep, call: CallDep) -> Response:
    """The assistant's answers to a conversation, whole or as events."""
    body.check(service.settings)
    adapter, n = adapter_of(service, body.model), body.n or 1
    said = "\n".join(message["content"] for message in _messages(body))
    await check_length(service, said, service.engine.slot_tokens, "messages")
    if (schema := _schema(body)) is not None:
        await service.json_schemas.check(schema)
    retrieved = await _retrieved(body, service, adapter)
    requests = await service.engine.call(lambda: _requests(body, service, retrieved))
    answers = Answers.start(service, requests, n=n, adapter=adapter, salt=salt_of(call, body), call=call)
    head = {"id": new_id("chatcmpl"), "created": int(time.time()), "model": body.model or service.model_name}
    reply = _Reply(head, answers, retrieved, with_logprobs=bool(body.logprobs))
    if body.stream:
        return EventStream(reply.chunks(include_usage=body.include_usage), request_id=call.id, close=answers.cancel)
    completions = await answers.finished()
    return await asyncio.to_thread(lambda: json_reply(reply.whole(completions)))  # log-probabilities may be many


async def _retrieved(body: ChatRequest, service: Service, adapter: str | None) -> Retrieved | None:
    """What the answer is to be read from, where a knowledge base was named."""
    if body.base is None:
        return None
    params = body.params(body.longest or min(MAX_NEW_TOKENS, service.settings.default_max_tokens))
    return await retrieve_for_chat(service, body.base, _messages(body), params, adapter=adapter)


def _requests(body: ChatRequest, service: Service, retrieved: Retrieved | None) -> list[decoder.Request]:
    """Prompt and constraint of every answer."""
    n = body.n or 1
    if retrieved is not None:
        request = retrieved.request
    else:
        ids = service.model.tokens.chat_prompt(_messages(body))
        room = room_for(service, ids, body.longest, service.settings.default_max_tokens)
        request = decoder.Request(ids, body.params(room))
    if body.logprobs:
        request = replace(request, top_logprobs=body.top_logprobs or 0)
    return requests_of(request, n, _constraints(body, service.engine, n))


def _messages(body: ChatRequest) -> list[Message]:
    return [message.message() for message in body.messages]


def _constraints(body: ChatRequest, engine: Engine, n: int) -> list[Constraint]:
    """One for each answer, where the answers are to be JSON."""
    if body.response_format is None or isinstance(body.response_format, TextFormat):
        return []
    first = engine.json_constraint(_schema(body))
    return [first, *(first.copy() for _ in range(n - 1))]


def _schema(body: ChatRequest) -> dict[str, Any] | None:
    """The JSON schema that the answers must obey, where there is one."""
    wanted = body.response_format
    return wanted.json_schema.definition if isinstance(wanted, JsonSchemaFormat) else None


@dataclass(frozen=True)
class _Reply:
    """What is said about the answers."""

    head: dict[str, Any]
    answers: Answers
    retrieved: Retrieved | None
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
        usage = self.answers.usage(completions)
        about = None if self.retrieved is None else self.retrieved.whole(self.answers.call)
        return ChatCompletion(**self.head, choices=choices, usage=usage, gritkit=about)

    async def chunks(self, *, include_usage: bool) -> Events:
        """The same as events."""
        dropped = None if include_usage else {"usage"}  # null in all chunks but the last, as in the OpenAI API

        def chunk(choice: ChatChunkChoice, about: ChatSources | None = None) -> bytes:
            return event(ChatChunk(**self.head, choices=[choice], gritkit=about).model_dump_json(exclude=dropped))

        num_answers = len(self.answers.generations)
        for index in range(num_answers):
            about = self.retrieved.sources() if self.retrieved is not None and index == 0 else None
            yield chunk(ChatChunkChoice(index=index, delta=ChatDelta(role="assistant", content="")), about)
        completions: dict[int, Completion] = {}
        async with aclosing(self.answers.events()) as events:
            async for index, happened in events:
                if isinstance(happened, Delta):
                    delta, logprobs = ChatDelta(content=happened.text), self._logprobs(happened.logprobs)
                    yield chunk(ChatChunkChoice(index=index, delta=delta, logprobs=logprobs))
                else:
                    completions[index] = happened.completion
                    reason, all_ended = finish_reason(happened.completion), len(completions) == num_answers
                    about = self.retrieved.outcome(self.answers.call) if self.retrieved and all_ended else None
                    yield chunk(ChatChunkChoice(index=index, delta=ChatDelta(), finish_reason=reason), about)
        usage = self.answers.usage([completions[index] for index in sorted(completions)])
        if include_usage:
            yield event(ChatChunk(**self.head, choices=[], usage=usage).model_dump_json())
        yield DONE

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> ChatLogprobs | None:
        return ChatLogprobs(content=[_logprob(token) for token in tokens]) if self.with_logprobs else None


def _logprob(token: TokenLogprob) -> ChatLogprob:
    likeliest = [TopLogprob(token=other.token, logprob=logprob_of(other), bytes=list(other.raw)) for other in token.top]
    return ChatLogprob(token=token.token, logprob=logprob_of(token), bytes=list(token.raw), top_logprobs=likeliest)
