"""One body -> n generations of the engine -> their events, merged as they come.

    requests_of(...)     the same request n times, with seed + i
    Answers.start(...)   all of them are running, or none
    answers.events()     (index, event) in the order of arrival
    answers.finished()   all completions, in order

This module knows nothing about HTTP messages or about the shape of a reply.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from anyio import CancelScope

from gritkit.errors import UnsupportedModelError
from gritkit.generation.decoder import Request
from gritkit.generation.params import Completion, Delta, Event, Finished, SamplingParams, TokenLogprob
from gritkit.generation.sampling import Constraint
from gritkit_serve.calls import Call
from gritkit_serve.engine import Generation
from gritkit_serve.errors import NotFoundError, ParameterError
from gritkit_serve.schemas.common import PromptDetails, Usage
from gritkit_serve.schemas.sampling import FinishReason, Sampling
from gritkit_serve.service import Service


def adapter_of(service: Service, name: str | None) -> str | None:
    """The adapter that a request's ``model`` names; None for the base model. Raises NotFoundError for any other."""
    if name is None or name == service.model_name:
        return None
    adapters = service.engine.adapters
    if name not in adapters:
        known = ", ".join((service.model_name, *adapters))
        raise NotFoundError(
            f"no model {name[:200]!r} here: this server has {known}", param="model", code="model_not_found"
        )
    return name


def salt_of(call: Call, body: Sampling) -> str:
    """Whose computed beginnings of prompts may be shared."""
    return f"{call.salt}\n{body.cache_salt}" if body.cache_salt else call.salt


def room_for(service: Service, prompt_ids: Sequence[int], asked: int | None, default: int) -> int:
    """Tokens that an answer may have: those asked for, as far as the context has room for them."""
    room = service.engine.slot_tokens - len(prompt_ids)
    return max(1, min(asked or default, room))  # a prompt without any room is refused by the engine


def requests_of(request: Request, n: int, constraints: Sequence[Constraint] = ()) -> list[Request]:
    """The request n times; a seed counts up from answer to answer, and each has a constraint of its own, if any."""
    requests = [replace(request, params=_seeded(request.params, index)) for index in range(n)]
    if not constraints:
        return requests
    return [replace(one, constraint=constraint) for one, constraint in zip(requests, constraints, strict=True)]


def _seeded(params: SamplingParams, index: int) -> SamplingParams:
    return params if params.seed is None else replace(params, seed=params.seed + index)


@dataclass(frozen=True)
class Answers:
    """Generations of one request."""

    generations: Sequence[Generation]
    n: int
    """Answers to each of the prompts; those of one prompt follow each other."""
    call: Call

    @classmethod
    def start(
        cls, service: Service, requests: Sequence[Request], *, n: int, adapter: str | None, salt: str, call: Call
    ) -> Answers:
        """Raises what the engine raises, and then none of them runs."""
        if not service.model.writes:
            raise UnsupportedModelError("this checkpoint has no language-model head: it embeds but cannot generate")
        limit = service.engine.limits.waiting_generations
        if len(requests) > limit:  # they would never be taken, however often they came again
            raise ParameterError(
                f"{len(requests)} answers are asked for: ask for at most {limit} at once, counting n for each prompt",
                param="n",
            )
        generations: list[Generation] = []
        try:
            for request in requests:
                generations.append(service.engine.generate(request, adapter=adapter, salt=salt))
        except BaseException:
            for generation in generations:
                generation.cancel()
            raise
        return cls(generations, n, call)

    def cancel(self) -> None:
        """Free their slots; nothing happens to those that have ended."""
        for generation in self.generations:
            generation.cancel()

    async def events(self) -> AsyncGenerator[tuple[int, Event], None]:
        """Everything that happens, with the index of its generation. Raises the first thing that goes wrong."""
        arrived: asyncio.Queue[tuple[int, Event | BaseException | None]] = asyncio.Queue()

        async def pump(index: int, generation: Generation) -> None:
            try:
                async for event in generation:
                    arrived.put_nowait((index, event))
                arrived.put_nowait((index, None))
            except Exception as error:
                arrived.put_nowait((index, error))

        pumps = [asyncio.ensure_future(pump(*numbered)) for numbered in enumerate(self.generations)]
        running = len(pumps)
        try:
            while running:
                index, event = await arrived.get()
                if event is None:
                    running -= 1
                elif isinstance(event, BaseException):
                    raise event
                else:
                    if isinstance(event, Delta) and event.text:
                        self.call.token()
                    yield index, event
        finally:
            self.cancel()
            for task in pumps:
                task.cancel()
            with CancelScope(shield=True):
                await asyncio.gather(*pumps, return_exceptions=True)

    async def finished(self) -> list[Completion]:
        """All of them, in order. Raises the first thing that goes wrong."""
        completions: dict[int, Completion] = {}
        async for index, event in self.events():
            if isinstance(event, Finished):
                completions[index] = event.completion
        return [completions[index] for index in range(len(self.generations))]

    def usage(self, completions: Sequence[Completion]) -> Usage:
        """Of all answers together: a prompt counts once, however many answers it has."""
        prompts = [completion.usage for completion in completions[:: self.n]]
        prompt, cached = sum(u.prompt_tokens for u in prompts), sum(u.cached_tokens for u in prompts)
        written = sum(completion.usage.completion_tokens for completion in completions)
        self.call.use(prompt=prompt, cached=cached, completion=written)
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=written,
            total_tokens=prompt + written,
            prompt_tokens_details=PromptDetails(cached_tokens=cached),
        )


def finish_reason(completion: Completion) -> FinishReason:
    """Why an answer ended; one that was cancelled never gets here."""
    assert completion.finish_reason != "cancelled"
    return completion.finish_reason


def logprob_of(token: TokenLogprob) -> float:
    """JSON has no infinity; what the OpenAI API says of a token that cannot be is -9999."""
    return max(token.logprob, -9999.0)
