"""What a request may weigh and how long it may take to arrive; and the end of its work when its client leaves.

A body is counted as it comes, whatever its headers say. JSON is checked before any route sees it; files go on piece by
piece to the route that takes them. From then on the client is watched: when it goes away, the route is cancelled, and
with it the generation that nobody would read.

This module knows nothing about routes but which ones take files, and nothing about what is asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import anyio
import anyio.to_thread
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gritkit.errors import InputError
from gritkit_serve import json_text
from gritkit_serve.calls import Call
from gritkit_serve.errors import HttpError
from gritkit_serve.settings import MIB, Settings

_LARGE_JSON = 64 << 10
"""Bytes from which checking takes long enough to be done beside the event loop."""
_DISCONNECT: Message = {"type": "http.disconnect"}


class BodyLimits:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, *, settings: Settings, takes_files: Callable[[str], bool]) -> None:
        self._app = app
        self._settings = settings
        self._takes_files = takes_files
        self._buffered = 0
        self._checkers = anyio.CapacityLimiter(2)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        files = has_body and self._are_files(headers, scope["path"])
        body = Body(receive, self._settings, files=files, declared=headers.get("content-length"))
        try:
            if not has_body:
                body.is_empty()
            elif not files:
                await self._read_json(body, scope["state"]["call"])
            await _run_while_connected(self._app, scope, body, send)
        except ClientLeft:
            scope["state"]["call"].outcome = "disconnected"
        finally:
            self._buffered -= body.held

    def _are_files(self, headers: Headers, path: str) -> bool:
        """Raises HttpError (415) for a body that is neither JSON nor files for a route that takes them."""
        if (encoding := headers.get("content-encoding", "identity").lower()) != "identity":
            raise HttpError(f"content-encoding {encoding[:40]!r} is not taken: send the body as it is", status=415)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/json":
            return False
        if kind == "multipart/form-data" and self._takes_files(path):
            return True
        wanted = "application/json or multipart/form-data" if self._takes_files(path) else "application/json"
        raise HttpError(f"content-type {kind[:60]!r} is not taken: send {wanted}", status=415)

    async def _read_json(self, body: Body, call: Call) -> None:
        settings = self._settings
        while not body.arrived.is_set():
            count = await body.read_more()
            self._buffered += count
            if self._buffered > settings.max_buffered_bytes:
                raise HttpError(
                    "the server holds as many request bodies as it may: try again in 1 s",
                    status=429, code="too_many_bytes", retry_after_s=1,
                )  # fmt: skip
        text = body.whole()
        check = partial(
            json_text.check, text, max_depth=settings.max_json_depth, max_containers=settings.max_json_containers
        )
        try:
            if len(text) < _LARGE_JSON:
                check()
            else:
                await anyio.to_thread.run_sync(check, limiter=self._checkers)
        except InputError as error:
            raise HttpError(str(error), status=400) from error
        if settings.log_prompts:
            call.body = text


class ClientLeft(Exception):
    """Before its body was there."""


class Body:
    """One request's body: counted, timed, and given to the route whole (JSON) or as it comes (files)."""

    def __init__(self, receive: Receive, settings: Settings, *, files: bool, declared: str | None) -> None:
        self._receive = receive
        self._settings = settings
        self._files = files
        self._limit = settings.max_upload_bytes if files else settings.max_body_bytes
        self._started = time.monotonic()
        self._count = 0
        self._pieces: list[bytes] = []
        self.arrived = anyio.Event()
        """Nothing of the body is still to come: what comes next is the client's leaving."""
        self.left = anyio.Event()
        if declared is not None and declared.isdecimal() and int(declared) > self._limit:
            raise self._too_large()

    @property
    def held(self) -> int:
        """Bytes in memory until the request has ended."""
        return 0 if self._files else self._count

    def is_empty(self) -> None:
        """There is none to wait for."""
        self._pieces.append(b"")
        self.arrived.set()

    async def read_more(self) -> int:
        """Take one piece; returns its size. Raises HttpError (408, 413) and ClientLeft."""
        message = await self._next()
        piece = message.get("body", b"")
        self._pieces.append(piece)
        return len(piece)

    def whole(self) -> bytes:
        self._pieces = [b"".join(self._pieces)]
        return self._pieces[0]

    async def receive(self) -> Message:
        """What the route reads from."""
        if self._pieces:
            return {"type": "http.request", "body": self._pieces.pop(), "more_body": False}
        if not self.arrived.is_set():
            try:
                return await self._next()
            except HttpError as error:  # FastAPI lets this one kind of error through while it reads a form
                raise HTTPException(error.status, str(error), error.headers) from error
            except ClientLeft:
                self.left.set()
                return _DISCONNECT
        await self.left.wait()
        return _DISCONNECT

    async def watch(self) -> None:
        """Returns when the client has gone, or has its answer."""
        await self.arrived.wait()
        while not self.left.is_set():
            if (await self._receive())["type"] == "http.disconnect":
                self.left.set()

    async def _next(self) -> Message:
        settings = self._settings
        patience = settings.body_seconds + self._count / settings.min_body_rate
        try:
            with anyio.fail_after(max(0.0, self._started + patience - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            raise HttpError(
                f"the body did not arrive in time: {self._count} bytes in {patience:.0f} s",
                status=408, code="slow_body", headers={"Connection": "close"},
            ) from None  # fmt: skip
        if message["type"] == "http.disconnect":
            raise ClientLeft
        self._count += len(message.get("body", b""))
        if self._count > self._limit:
            raise self._too_large()
        if not message.get("more_body", False):
            self.arrived.set()
        return message

    def _too_large(self) -> HttpError:
        what = "files" if self._files else "body"
        return HttpError(
            f"the {what} may have {self._limit / MIB:g} MiB: send less at a time", status=413, code="body_too_large"
        )


async def _run_while_connected(app: ASGIApp, scope: Scope, body: Body, send: Send) -> None:
    """Run the route; cancel it when the client leaves before the end of its answer."""
    failure: Exception | None = None
    ended = False

    async def answer(message: Message) -> None:
        nonlocal ended
        ended = message["type"] == "http.response.body" and not message.get("more_body", False)
        await send(message)

    async def watch() -> None:
        await body.watch()
        if not ended:
            scope["state"]["call"].outcome = "disconnected"
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        try:
            await app(scope, body.receive, answer)
        except Exception as error:  # taken out of the group, which would wrap it
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
