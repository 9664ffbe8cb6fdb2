"""How many requests are worked on at once and for how long, and the end of taking new ones.

This module knows nothing about what is asked; work on the device has limits of its own, in the engine.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio
from starlette.types import ASGIApp, Receive, Scope, Send

from gritkit_serve.errors import HttpError


class Admission:
    """ASGI middleware: how many requests run at once, for how long, and whether new ones are taken at all."""

    def __init__(self, app: ASGIApp, *, gate: Gate, seconds: float, always: Callable[[str], bool]) -> None:
        self._app = app
        self._gate = gate
        self._seconds = seconds
        self._always = always

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._always(scope["path"]):
            await self._app(scope, receive, send)
            return
        self._gate.enter()
        try:
            with anyio.move_on_after(self._seconds) as limit:
                await self._app(scope, receive, send)
        finally:
            self._gate.leave()
        if limit.cancelled_caught:
            scope["state"]["call"].outcome = "deadline"
            raise HttpError(
                f"the request did not end within {self._seconds:g} s and was cancelled: ask for less at a time",
                status=504, code="deadline", headers={"X-Should-Retry": "false"},
            )  # fmt: skip


class Gate:
    """Counts the requests inside. One event loop's own."""

    def __init__(self, max_inside: int) -> None:
        self._max_inside = max_inside
        self.inside = 0
        self.closed = False
        self._empty: anyio.Event | None = None

    def enter(self) -> None:
        """Raises HttpError: 503 when the gate is closed, 429 when there are too many inside."""
        if self.closed:
            raise HttpError(
                "the server is going down: send this to another, or again later",
                status=503, code="draining", retry_after_s=5, headers={"Connection": "close"},
            )  # fmt: skip
        if self.inside >= self._max_inside:
            raise HttpError(
                f"the server works on {self.inside} requests, as many as it may: try again in 1 s",
                status=429, code="too_many_requests", retry_after_s=1,
            )  # fmt: skip
        self.inside += 1

    def leave(self) -> None:
        self.inside -= 1
        if not self.inside and self._empty is not None:
            self._empty.set()

    async def drain(self, seconds: float) -> bool:
        """Close, and wait until nobody is inside. Whether that came within the time."""
        self.closed = True
        self._empty = anyio.Event()
        if not self.inside:
            return True
        with anyio.move_on_after(seconds) as limit:
            await self._empty.wait()
        return not limit.cancelled_caught
