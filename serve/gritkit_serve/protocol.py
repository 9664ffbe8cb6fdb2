"""HTTP/1.1 on the wire, by uvicorn's httptools protocol, with the bounds that it lacks.

    connections at once         503, closed
    size of headers             431, closed; also of what never becomes a header, and of trailers
    time for headers            408, closed (or just closed, when nothing came at all)
    an answer that is not read  disconnected
    a body that nobody wants    disconnected, when it goes on long after the answer

The sizes and times of bodies that are wanted are the application's business (``limits``). This module knows nothing
about routes.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gritkit_serve.errors import HttpError, problem_of
from gritkit_serve.logs import LOG
from gritkit_serve.settings import Settings


def guarded(settings: Settings) -> type[asyncio.Protocol]:
    """The protocol of connections under these settings, as ``uvicorn.Config(http=...)`` takes it."""
    return type("GuardedProtocol", (_Guarded,), {"settings": settings})


class _Refused(Exception):
    """Inside of the parser, which then stops."""


class _Guarded(HttpToolsProtocol):
    settings: Settings

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._timer: asyncio.TimerHandle | None = None
        """For the part of a request that is awaited now: its headers, or the rest of a body after the answer."""
        self._stalled: asyncio.TimerHandle | None = None
        self._in_message = False
        self._in_headers = False
        self._header_bytes = 0
        """Of the headers that are complete."""
        self._raw_bytes = 0
        """That came since the last part of a message that the parser could tell: it keeps them."""
        self._moved = False
        """Whether the last bytes had such a part."""
        self._began_within = False
        """Whether a message began in the middle of the last bytes."""
        self._refusal: HttpError | None = None

    # -- connection ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.settings.max_connections:
            most = self.settings.max_connections
            message = f"the server has {most} connections open, as many as it may"
            self._refuse(HttpError(message, status=503, code="too_many_connections", retry_after_s=1))
            return
        self._wait(self.settings.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait(None)
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._moved = self._began_within = False
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_headers:
            self._raw_bytes += 0 if self._began_within else len(data)
        else:
            self._raw_bytes = 0 if self._moved else self._raw_bytes + len(data)
        if self._raw_bytes > self.settings.max_header_bytes:
            self._refuse(self._too_large())
        elif not self._in_message and self._timer is None and (self.cycle is None or self.cycle.response_complete):
            self._wait(self.settings.header_seconds)  # blank lines, which uvicorn takes for life

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(self.settings.stalled_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        super().resume_writing()

    # -- what the parser finds -----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_message = self._in_headers = True
        self._began_within = self._moved
        self._header_bytes = self._raw_bytes = 0
        self._wait(self.settings.header_seconds)

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._moved = True
        self._in_headers = False
        self._wait(None)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._moved = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._moved = True
        self._in_message = False
        self._wait(None)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._in_message:
            self._wait(self.settings.body_seconds)
        super().on_response_complete()

    # -- refusals ------------------------------------------------------------------------------------------------

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > self.settings.max_header_bytes:
            self._refusal = self._too_large()
            raise _Refused

    def _too_large(self) -> HttpError:
        limit = self.settings.max_header_bytes >> 10
        return HttpError(f"the headers may have {limit} KiB in all", status=431, code="headers_too_large")

    def _wait(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self._too_late)

    def _too_late(self) -> None:
        if self.transport.is_closing():
            return
        if not self._in_message:
            self.transport.close()
        elif self.cycle is not None and self.cycle.response_started:
            self.transport.abort()
        else:
            self._refuse(HttpError("the headers did not arrive in time", status=408, code="slow_headers"))

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls when the parser gives up."""
        self._refuse(self._refusal or HttpError("this is not valid HTTP/1.1", status=400))

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: the request is answered as if it had not asked, and the log is not for strangers to fill."""

    def _refuse(self, error: HttpError) -> None:
        """Answer in the shape of all errors, without a request, and close; just close in the middle of an answer."""
        LOG.info("refused", extra={"fields": {"status": error.status, "code": error.code}})
        problem = problem_of(error)
        body = problem.encoded()
        headers = {
            **problem.headers, "content-type": "application/json", "content-length": str(len(body)),
            "connection": "close",
        }  # fmt: skip
        lines = [f"{name}: {value}\r\n".encode("latin-1") for name, value in headers.items()]
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(b"".join([STATUS_LINE[problem.status], *lines, b"\r\n", body]))
        self.transport.close()
