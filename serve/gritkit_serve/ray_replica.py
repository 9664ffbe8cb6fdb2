"""One replica of the server: the application of the single server without a socket, and what it says of itself.

Its requests come as a whole and its answers leave as ASGI messages, so that every route, layer and limit is the single
server's. The model is loaded in a thread; until then it answers 503, as the single server does.

This module knows nothing about Ray or how requests get here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

from starlette.types import Message

from gritkit.errors import GritkitError
from gritkit.rag.answering import Question
from gritkit_serve.app import create_app
from gritkit_serve.calls import Call
from gritkit_serve.logs import failure_fields
from gritkit_serve.placement import Placement, placement
from gritkit_serve.ray_fleet import Forwarded, LogEntry, Moved, Notice, Piece, Report
from gritkit_serve.service import Service
from gritkit_serve.settings import Settings

_LOOK_S = 0.25
_MAX_LOG = 1000
_ENDED = object()


@dataclass(frozen=True)
class Plan:
    """What every replica is made from; it must pickle."""

    model_name: str
    settings: Settings
    load: Callable[[Service], None]
    """Gives a service its engine and its knowledge bases."""


class AppReplica:
    """Made anywhere; its coroutines are for one event loop. ``log`` is told with its notices."""

    def __init__(self, name: str, plan: Plan, *, log: ProcessLog | None = None) -> None:
        self.name = name
        self.service = Service(plan.model_name, plan.settings)
        self.problem: str | None = None
        """Why the model cannot be loaded."""
        self._told = False
        """Whether somebody knows."""
        self._app = create_app(self.service)
        self._log = log
        threading.Thread(target=self._load, args=(plan,), name="gritkit-loader", daemon=True).start()

    def _load(self, plan: Plan) -> None:
        try:
            plan.load(self.service)
        except GritkitError as error:
            self.problem = str(error)
        except BaseException as error:
            logging.getLogger("gritkit.serve").exception("the model could not be loaded")
            self.problem = f"a replica could not load the model: {type(error).__name__}: {error}"

    async def watch(self) -> AsyncGenerator[Notice, None]:
        """A notice at first, and whenever something has changed."""
        said = None
        while True:
            state = "failed" if self.problem is not None else self.service.state
            notice = Notice(state, os.getpid(), self.problem, self._log.taken() if self._log is not None else ())
            if notice != said:
                yield notice
                said = Notice(state, notice.pid, self.problem)
                self._told = self.problem is not None
            await asyncio.sleep(_LOOK_S)

    async def metrics(self) -> str:
        """Prometheus' text."""
        return self.service.metrics.text().decode()

    async def stop(self, drain_s: float) -> None:
        """End the engine's work within the time."""
        await asyncio.to_thread(self.service.stop, drain_s)

    # -- requests ------------------------------------------------------------------------------------------------

    async def answer(self, request: Forwarded) -> AsyncGenerator[Piece, None]:
        """Messages in batches, then a report; or the place where the request is to be answered, alone."""
        outgoing: asyncio.Queue[Any] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def move(owner: str, question: Question) -> None:
            loop.call_soon_threadsafe(outgoing.put_nowait, Moved(owner, question))

        mine = Placement(self.name, request.names, found=request.found, move=move)
        running = asyncio.ensure_future(self._run(request, mine, outgoing))
        try:
            while True:
                batch = [await outgoing.get()]
                while not outgoing.empty():
                    batch.append(outgoing.get_nowait())
                for piece in batch:
                    if isinstance(piece, Moved):
                        yield piece
                        return
                messages: list[Message] = [piece for piece in batch if isinstance(piece, dict)]
                if messages:
                    yield messages
                if _ENDED in batch:
                    break
            report = await running
            if report is not None:
                yield report
        finally:  # its client has gone, another replica answers, or it has ended
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def _run(self, request: Forwarded, mine: Placement, outgoing: asyncio.Queue[Any]) -> Report | None:
        placement.set(mine)
        scope: dict[str, Any] = {**request.scope, "asgi": {"version": "3.0"}, "state": {}}
        body: list[Message] = [{"type": "http.request", "body": request.body, "more_body": False}]
        held: list[Message] = []

        async def receive() -> Message:
            if not body:
                await asyncio.Event().wait()  # the client's leaving comes as the end of this task
            return body.pop()

        async def send(message: Message) -> None:
            """Nothing leaves before there is something to read: until then the request may go elsewhere."""
            held.append(message)
            if message["type"] != "http.response.start" and mine.stay():
                for one in held:
                    outgoing.put_nowait(one)
                held.clear()

        try:
            await self._app(scope, receive, send)
        finally:
            outgoing.put_nowait(_ENDED)
        return _report_of(scope["state"].get("call"))

    def check(self) -> None:
        """Raises when it will never work, and has said why."""
        if self._told:
            raise RuntimeError(self.problem)


def _report_of(call: Call | None) -> Report | None:
    if call is None:
        return None
    return Report(call.route, call.prompt_tokens, call.cached_tokens, call.completion_tokens, call.first_token_s)


class ProcessLog(logging.Handler):
    """Warnings and worse of a process that has no log of its own, kept until they are taken; the last ones at least."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._entries: deque[LogEntry] = deque(maxlen=_MAX_LOG)
        logger = logging.getLogger("gritkit")
        logger.handlers = [self]
        logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        fields = dict(getattr(record, "fields", {}))
        if record.exc_info and record.exc_info[1] is not None:
            fields |= failure_fields(record.exc_info[1], with_message=False)
        self._entries.append(LogEntry(record.levelno, record.getMessage(), fields))

    def taken(self) -> tuple[LogEntry, ...]:
        """What has come since the last time."""
        taken = []
        with contextlib.suppress(IndexError):
            while True:
                taken.append(self._entries.popleft())
        return tuple(taken)
