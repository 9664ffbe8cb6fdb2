"""``/v1/completions``: raw prompts and what continues them.

This module knows nothing about threads or tokenizers.
"""

from __future__ import annotations

import asyncio
import codecs
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from fastapi import APIRouter, Response

from gritkit.generation import decoder
from gritkit.generation.params import Completion as Generated
from gritkit.generation.params import Delta, TokenLogprob
from gritkit_serve.errors import ParameterError
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
from gritkit_serve.routes.token_ids import check_ids
from gritkit_serve.schemas.common import Usage
from gritkit_serve.schemas.completions import Completion, CompletionChoice, CompletionLogprobs, CompletionRequest
from gritkit_serve.service import CallDep, Service, ServiceDep

router = APIRouter(tags=["OpenAI"])

DEFAULT_MAX_TOKENS = 16
"""As in the OpenAI API; a server may be set to fewer."""


@router.post("/v1/completions", response_model=Completion, responses=streams_too(Completion, Completion))
async def completions(body: CompletionRequest, service: ServiceDep, call: CallDep) -> Response:
    """What continues raw prompts, whole or as events."""
    body.check(service.settings)
    adapter, n = adapter_of(service, body.model), body.n or 1
    for index, item in enumerate(body.items):
        if isinstance(item, str):
            await check_length(service, item, service.engine.slot_tokens, f"prompt[{index}]")
    requests = await service.engine.call(lambda: _requests(body, service))
    answers = Answers.start(service, requests, n=n, adapter=adapter, salt=salt_of(call, body), call=call)
    reply = _Reply(
        new_id("cmpl"), int(time.time()), body.model or service.model_name, answers, body.logprobs is not None
    )
    if body.stream:
        return EventStream(reply.chunks(include_usage=body.include_usage), request_id=call.id, close=answers.cancel)
    finished = await answers.finished()
    return await asyncio.to_thread(lambda: json_reply(reply.whole(finished)))  # log-probabilities may be many


def _requests(body: CompletionRequest, service: Service) -> list[decoder.Request]:
    tokens, requests = service.model.tokens, []
    for index, item in enumerate(body.items):
        ids = tokens.raw_prompt(item) if isinstance(item, str) else check_ids(tokens, item, f"prompt[{index}]")
        if not ids:
            raise ParameterError("the prompt is empty: there is nothing to continue", param=f"prompt[{index}]")
        room = room_for(service, ids, body.max_tokens, min(DEFAULT_MAX_TOKENS, service.settings.default_max_tokens))
        first = decoder.Request(ids, body.params(room), top_logprobs=body.logprobs)
        requests += requests_of(first, body.n or 1)
    return requests


@dataclass(frozen=True)
class _Reply:
    """What is said about the answers."""

    id: str
    created: int
    model: str
    answers: Answers
    with_logprobs: bool

    def whole(self, completions: Sequence[Generated]) -> Completion:
        """All of it."""
        choices = [
            CompletionChoice(
                index=index,
                text=completion.text,
                logprobs=_Logprobs().of(completion.logprobs) if self.with_logprobs else None,
                finish_reason=finish_reason(completion),
            )
            for index, completion in enumerate(completions)
        ]
        return self._said(choices, self.answers.usage(completions))

    async def chunks(self, *, include_usage: bool) -> Events:
        """The same as events."""
        dropped = None if include_usage else {"usage"}  # null in all chunks but the last, as in the OpenAI API
        logprobs = [_Logprobs() for _ in self.answers.generations]
        completions: dict[int, Generated] = {}
        async with aclosing(self.answers.events()) as events:
            async for index, happened in events:
                if isinstance(happened, Delta):
                    of_text = logprobs[index].of(happened.logprobs) if self.with_logprobs else None
                    choice = CompletionChoice(index=index, text=happened.text, logprobs=of_text, finish_reason=None)
                else:
                    completions[index] = happened.completion
                    reason = finish_reason(happened.completion)
                    choice = CompletionChoice(index=index, text="", logprobs=None, finish_reason=reason)
                yield event(self._said([choice]).model_dump_json(exclude=dropped))
        usage = self.answers.usage([completions[index] for index in sorted(completions)])
        if include_usage:
            yield event(self._said([], usage).model_dump_json())
        yield DONE

    def _said(self, choices: list[CompletionChoice], usage: Usage | None = None) -> Completion:
        return Completion(id=self.id, created=self.created, model=self.model, choices=choices, usage=usage)


@dataclass
class _Logprobs:
    """Where the next token begins in an answer's text."""

    offset: int = 0
    _characters: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )

    def of(self, tokens: Sequence[TokenLogprob]) -> CompletionLogprobs:
        """In the form of this route. A token that is a part of a character begins where that does."""
        offsets = []
        for token in tokens:
            offsets.append(self.offset)
            self.offset += len(self._characters.decode(token.raw))
        return CompletionLogprobs(
            tokens=[_spelled(token) for token in tokens],
            token_logprobs=[logprob_of(token) for token in tokens],
            top_logprobs=[{_spelled(one): logprob_of(one) for one in (*token.top, token)} for token in tokens],
            text_offset=offsets,
        )


def _spelled(token: TokenLogprob) -> str:
    """Its text; of a part of a character its bytes, as the OpenAI API spells them."""
    try:
        return token.raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.raw)
