from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from starlette.types import Message

from gritkit.errors import InputError
from gritkit_serve.errors import HttpError
from gritkit_serve.routes.sse import DONE, KEEP_ALIVE, EventStream, event

Events = AsyncGenerator[bytes, None]


async def sent(events: Events, *, left: asyncio.Event | None = None, close: Callable[[], None] = list) -> list[Message]:
    """What goes over the wire to a client that stays, or that leaves when it is told to."""
    messages: list[Message] = []
    left = left or asyncio.Event()

    async def send(message: Message) -> None:
        messages.append(message)
        await asyncio.sleep(0)

    async def receive() -> Message:
        await left.wait()
        return {"type": "http.disconnect"}

    scope: dict[str, Any] = {"type": "http", "asgi": {"spec_version": "2.3"}}
    response = EventStream(events, request_id="req-1", close=close)
    await asyncio.wait_for(response(scope, receive, send), 30)
    return messages


def bodies(messages: list[Message]) -> list[bytes]:
    return [message["body"] for message in messages[1:] if message["body"]]


def test_an_event_is_whole_and_may_have_a_name() -> None:
    assert event('{"a": 1}') == b'data: {"a": 1}\n\n'
    assert event("1", name="sources") == b"event: sources\ndata: 1\n\n"
    with pytest.raises(AssertionError):
        event("1\ndata: 2")


def test_an_event_is_one_line_for_every_reader() -> None:
    data = '{"text": "a\x85b\u2028c\u2029d é"}'
    sent = event(data).decode()
    assert sent.splitlines() == [sent.rstrip("\n"), ""]
    assert json.loads(sent.removeprefix("data: ")) == json.loads(data)


def test_each_event_is_sent_at_once_and_alone() -> None:
    async def events() -> Events:
        yield event("1")
        yield event("2")
        yield DONE

    messages = asyncio.run(sent(events()))
    headers = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-store"
    assert headers["x-accel-buffering"] == "no"
    assert "content-length" not in headers
    assert bodies(messages) == [b"data: 1\n\n", b"data: 2\n\n", DONE]
    assert messages[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


def test_comments_keep_a_quiet_connection_open_and_lose_nothing() -> None:
    spoken = asyncio.Event()

    async def events() -> Events:
        yield event("1")
        await spoken.wait()
        yield event("2")

    async def run() -> list[bytes]:
        messages: list[bytes] = []

        class Watched(EventStream):
            async def stream_response(self, send: Any) -> None:
                async def watching(message: Message) -> None:
                    messages.append(message.get("body", b""))
                    if messages.count(KEEP_ALIVE) == 2:
                        spoken.set()

                await super().stream_response(watching)

        async def receive() -> Message:
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Message) -> None:
            raise AssertionError

        response = Watched(events(), request_id="r", close=list, keep_alive_s=0.01)
        scope: dict[str, Any] = {"type": "http", "asgi": {"spec_version": "2.3"}}
        await asyncio.wait_for(response(scope, receive, send), 30)
        return messages

    said = [body for body in asyncio.run(run()) if body]
    assert said[:3] == [b"data: 1\n\n", KEEP_ALIVE, KEEP_ALIVE]
    assert [body for body in said if body != KEEP_ALIVE] == [b"data: 1\n\n", b"data: 2\n\n"]


def test_a_failure_is_the_last_event() -> None:
    async def events() -> Events:
        yield event("1")
        raise HttpError("the server has stopped", status=503, code="stopped")

    assert bodies(asyncio.run(sent(events()))) == [
        b"data: 1\n\n",
        b'data: {"error": {"message": "the server has stopped", "type": "unavailable_error", "param": null, '
        b'"code": "stopped"}}\n\n',
    ]


def test_a_defect_is_for_the_layers_around() -> None:
    async def events() -> Events:
        yield event("1")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(sent(events()))


@pytest.mark.parametrize("waits", [True, False])
def test_a_client_that_leaves_ends_what_makes_the_events(waits: bool) -> None:
    ended: list[str] = []

    async def events(left: asyncio.Event) -> Events:
        try:
            while True:
                yield event("1")
                left.set()
                if waits:
                    await asyncio.Event().wait()
        finally:
            ended.append("events")

    async def run() -> None:
        left = asyncio.Event()
        await sent(events(left), left=left, close=lambda: ended.append("closed"))
        assert sorted(ended) == ["closed", "events"]

    asyncio.run(run())


def test_what_was_never_begun_is_closed_too() -> None:
    closed: list[bool] = []

    async def events() -> Events:
        yield event("1")

    async def run() -> None:
        response = EventStream(events(), request_id="r", close=lambda: closed.append(True))

        async def receive() -> Message:
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            raise BrokenPipeError

        with pytest.raises(BrokenPipeError):
            await response({"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send)

    asyncio.run(run())
    assert closed == [True]


def test_an_error_before_the_first_event_is_an_event_as_well() -> None:
    async def events() -> Events:
        raise InputError("the prompt is empty")
        yield b""

    (last,) = bodies(asyncio.run(sent(events())))
    assert b'"message": "the prompt is empty", "type": "invalid_request_error"' in last
