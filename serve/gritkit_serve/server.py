"""The process around the application: a socket, uvicorn with explicit limits, and an end that loses no answer.

On SIGTERM or SIGINT the server drains: it still listens, so that /health answers and /ready says 503, takes no more
work (503 with Retry-After), lets what runs come to its end within its time, cancels the rest, and leaves with code 0. A
second signal ends it at once.

This module knows nothing about routes or how models are loaded.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from dataclasses import replace
from types import FrameType
from typing import NoReturn

import uvicorn
from starlette.types import ASGIApp

from gritkit_serve.descriptors import room_for
from gritkit_serve.listening import BACKLOG
from gritkit_serve.logs import LOG
from gritkit_serve.protocol import guarded
from gritkit_serve.service import Service
from gritkit_serve.settings import Settings

_LAST_WORDS_S = 2
"""For answers to be written after everything has ended or was cancelled."""


class Server(uvicorn.Server):
    """Serves one service on one socket until a signal, or :meth:`leave`."""

    def __init__(self, service: Service, app: ASGIApp) -> None:
        settings = _with_room(service.settings)
        super().__init__(
            uvicorn.Config(
                app,
                http=guarded(settings),
                loop="asyncio",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
                timeout_keep_alive=round(settings.keep_alive_seconds),
                timeout_graceful_shutdown=_LAST_WORDS_S,
            )
        )
        self._service = service
        self._asked_to_leave = False
        self._drain: asyncio.Task[None] | None = None

    def leave(self) -> None:
        """Drain and end; from any thread."""
        self._asked_to_leave = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """uvicorn's handler of signals; its own would end the process by the signal in the end, not with code 0."""
        if self._asked_to_leave:
            _leave_at_once(sig)
        self.leave()

    async def on_tick(self, counter: int) -> bool:
        if self._asked_to_leave and self._drain is None:
            self._drain = asyncio.create_task(self._end())
        return await super().on_tick(counter)

    async def _end(self) -> None:
        seconds = self._service.settings.drain_seconds
        started = time.monotonic()
        LOG.info("draining", extra={"fields": {"requests": self._service.gate.inside, "seconds": seconds}})
        try:
            if not await self._service.gate.drain(seconds):
                LOG.warning("cancelling what still runs", extra={"fields": {"requests": self._service.gate.inside}})
            remaining = max(0.0, seconds - (time.monotonic() - started))
            await asyncio.to_thread(self._service.stop, remaining)
        finally:
            self.should_exit = True


def _with_room(settings: Settings) -> Settings:
    """With no more connections than the process may have files open: without one for the next, none can be refused."""
    room = room_for(settings.max_connections)
    if room < settings.max_connections:
        LOG.warning(
            "few open files allowed: raise ulimit -n",
            extra={"fields": {"max_connections": room, "instead_of": settings.max_connections}},
        )
    return replace(settings, max_connections=room)


def _leave_at_once(sig: int) -> NoReturn:
    """Nothing that was acknowledged is lost: what is on disk survives a kill as well."""
    sys.stderr.flush()
    sys.stdout.flush()
    os._exit(128 + signal.Signals(sig).value)
