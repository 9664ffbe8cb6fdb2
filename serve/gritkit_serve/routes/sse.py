"""Server-sent events: whole events, comments that keep quiet connections open, and an end in every case.

    data: {"object": "chat.completion.chunk", ...}         one event; a name ("event: sources") stands before it, if any
    : keep-alive                                           nothing was said for a while
    data: {"error": {...}}                                 it failed after the status was sent; nothing comes after it
    data: [DONE]                                           it is whole

This module knows nothing about what the events say.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from anyio import CancelScope
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from gritkit.errors import GritkitError
from gritkit_serve.errors import event_of

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
KEEP_ALIVE_SECONDS = 15.0
"""Below the 60 s after which common proxies close a connection that says nothing."""

_BREAKS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
"""Not of events, but lines end there for clients that read by ``str.splitlines``, as httpx's ``aiter_lines`` does; in
JSON they stand within texts alone."""

Events = AsyncGenerator[bytes, None]


def event(data: str, *, name: str | None = None) -> bytes:
    """One event. ``data`` is JSON, which has no line breaks of its own."""
    assert "\n" not in data
    return (f"event: {name}\n" if name else "").encode() + b"data: " + data.translate(_BREAKS).encode() + b"\n\n"


class EventStream(StreamingResponse):
    """A response of events.

    A failure that gritkit raises becomes the last event, and any other is for the layers around. ``close`` is called
    once when it is over, also when the client has left before the first event.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: Events,
        *,
        request_id: str,
        close: Callable[[], None],
        keep_alive_s: float = KEEP_ALIVE_SECONDS,
    ) -> None:
        self._events = _with_keep_alives(_with_failure(events, request_id), keep_alive_s)
        self._close = close
        super().__init__(self._events, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()
            with CancelScope(shield=True):  # a client that left has cancelled everything that waits here
                await self._events.aclose()


async def _with_failure(events: Events, request_id: str) -> Events:
    try:
        async for one in events:
            yield one
    except GritkitError as error:
        yield event(event_of(error, request_id))
    finally:
        await events.aclose()


async def _with_keep_alives(events: Events, keep_alive_s: float) -> Events:
    next_one = asyncio.ensure_future(anext(events))
    try:
        while True:
            done, _ = await asyncio.wait({next_one}, timeout=keep_alive_s)
            if not done:
                yield KEEP_ALIVE
                continue
            try:
                one = next_one.result()
            except StopAsyncIteration:
                return
            yield one
            next_one = asyncio.ensure_future(anext(events))
    finally:
        next_one.cancel()
        with CancelScope(shield=True):
            await asyncio.gather(next_one, return_exceptions=True)
            await events.aclose()
