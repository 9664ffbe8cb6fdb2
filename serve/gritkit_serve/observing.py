"""Around the routes: every request gets an id, a line in the log and its metrics, and further in an end.

What nothing else has caught ends as a 500 that says nothing but the id. This module knows nothing about what is being
asked or answered.
"""

from __future__ import annotations

import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gritkit_serve.calls import Call, request_id
from gritkit_serve.errors import HttpError, event_of, problem_of
from gritkit_serve.logs import log_failure, log_request
from gritkit_serve.metrics import Metrics

CLIENT_LEFT = 499
"""nginx' status for a request whose client left before there was an answer; it goes to the log alone."""


class Observing:
    """ASGI middleware, the outermost."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = Call(request_id(Headers(scope=scope).get("x-request-id")), scope, self._metrics)
        scope.setdefault("state", {})["call"] = call
        answer = _Noted(send, call.id)
        with self._metrics.in_flight.track_inprogress():
            try:
                await self._app(scope, receive, answer)
            finally:
                status, seconds = answer.status or CLIENT_LEFT, time.perf_counter() - call.started
                self._metrics.ended(call.route, scope["method"], status, seconds)
                log_request(call, status, seconds)


class _Noted:
    """``send`` of one request: notes the status, and adds the headers that every answer has."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._request_id
            headers["x-content-type-options"] = "nosniff"
        await self._send(message)


class Ending:
    """ASGI middleware, within :class:`Observing`: answers what the layers and routes further in raise.

    A layer between the two sees these answers like all others: without the headers of CORS a page could not read why it
    was refused.
    """

    def __init__(self, app: ASGIApp, *, log_prompts: bool) -> None:
        self._app = app
        self._log_prompts = log_prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call: Call = scope["state"]["call"]
        answer = _Answer(send, call.id)
        try:
            await self._app(scope, receive, answer)
        except HttpError as error:  # a layer's refusal
            await answer.fail(error)
        except Exception as error:
            log_failure(error, call.id, with_message=self._log_prompts)
            await answer.fail(error)


class _Answer:
    """``send`` of one request: knows how far the answer has come."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self._begun = False
        self._streams_events = False
        self._ended = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begun = True
            kind = Headers(raw=message.get("headers", [])).get("content-type", "")
            self._streams_events = kind.startswith("text/event-stream")
        elif message["type"] == "http.response.body":
            self._ended = not message.get("more_body", False)
        await self._send(message)

    async def fail(self, error: Exception) -> None:
        """Tell the client, as far as that can still be done; a half-sent answer is left open, and the server closes the
        connection instead of letting it look whole."""
        if not self._begun:
            await problem_of(error, self._request_id).send(self)
        elif self._streams_events and not self._ended:
            event = f"data: {event_of(error, self._request_id)}\n\n"
            await self({"type": "http.response.body", "body": event.encode(), "more_body": False})
