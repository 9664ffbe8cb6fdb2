"""Several replicas of the server as one: which of them gets a request, and what happens when one of them is lost.

    a question      any replica finds its passages; the one whose they are answers (``placement``), unless it has far
                    more to do than the others
    a chat's turn   the replica that had the turns before, with the same exception
    anything else   the replica with the least to do
    a lost replica  what it had not begun to answer, and may be asked twice, another one answers; what else it worked on
                    fails; it is asked again when it is back, under its old name, so its documents come back to it

This module knows nothing about Ray: a replica is whatever a :class:`Link` leads to.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from starlette.types import Message

from gritkit.errors import GritkitError
from gritkit.rag.answering import Question
from gritkit_serve.errors import HttpError
from gritkit_serve.logs import LOG, log_failure
from gritkit_serve.placement import ranked

T = TypeVar("T")

REPEATABLE = re.compile(r"/v1/((chat/)?completions|embeddings|rerank|kb/[^/]+/(search|ask))|/(de)?tokenize")
"""What a POST to does not change anything."""
_FEW = 8
"""Requests that a replica may always have, whatever the others have: half of an engine's slots."""
_MOST = 1.25
"""Times its share of all requests that it gets for its documents' sake (Mirrokni, Thorup, Zadimoghaddam 2016)."""
_LOST_WHILE_LOADING = 3
"""Times in a row, after which it is given up."""
_RETRY_S = 2.0
_PAUSE_S = 0.5
"""Before a replica that was lost is asked for again."""


@dataclass(frozen=True)
class Forwarded:
    """A request on its way to a replica."""

    scope: Mapping[str, Any]
    body: bytes = field(repr=False)
    names: tuple[str, ...] = ()
    """Replicas that may answer it, where its passages decide."""
    found: Question | None = field(default=None, repr=False)
    """Its passages, when they are known."""
    follows: str | None = field(default=None, repr=False)
    """Requests with the same are for the same replica, when it has room for them."""


@dataclass(frozen=True)
class Moved:
    """Instead of an answer: another replica has the documents."""

    owner: str
    question: Question = field(repr=False)


@dataclass(frozen=True)
class Report:
    """After an answer: what the log says about it."""

    route: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    first_token_s: float | None


Answered = list[Message] | Report
Piece = Answered | Moved


@dataclass(frozen=True)
class Notice:
    """What a replica says of itself, whenever there is something to say."""

    state: str
    pid: int
    problem: str | None = None
    """Why it will never be ready."""
    log: tuple[LogEntry, ...] = ()
    """Warnings and worse, since the last one."""


@dataclass(frozen=True)
class LogEntry:
    """A line of a replica's log."""

    level: int
    event: str
    fields: Mapping[str, Any]


class LostError(Exception):
    """The process on the other side has ended."""


class Link(Protocol):
    """A way to one replica; everything in it raises LostError when the replica's process ends."""

    def answer(self, request: Forwarded) -> AsyncGenerator[Piece, None]:
        """ASGI messages in batches, then a report; or Moved alone. Closed early, the replica stops working on it."""

    def watch(self) -> AsyncGenerator[Notice, None]:
        """How it is, from now until it ends. Waits where it is being started."""

    async def metrics(self) -> str:
        """Prometheus' text."""

    async def stop(self, drain_s: float) -> None:
        """End its engine's work within the time."""


@dataclass(eq=False)
class Replica:
    """What is known about one of them."""

    name: str
    link: Link
    state: str = "loading"
    pid: int | None = None
    inside: int = 0
    """Requests it works on."""
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    """Of the process that there is now; its successor has another."""
    num_lost: int = 0


class Fleet:
    """All replicas. One event loop's own."""

    def __init__(self) -> None:
        self.replicas: dict[str, Replica] = {}
        self.num_moved = 0
        """Requests that went on to the replica of their documents."""
        self.num_repeated = 0
        """Requests that another replica got after the first was lost."""
        self._watchers: list[asyncio.Task[None]] = []
        self._once_ready: set[str] = set()
        self._changed = asyncio.Condition()
        self._problem: str | None = None
        self._ended = False

    @property
    def ready(self) -> list[Replica]:
        return [one for one in self.replicas.values() if one.state == "ready"]

    @property
    def began(self) -> bool:
        """Whether any was ever ready."""
        return bool(self._once_ready)

    async def begin(self, links: Mapping[str, Link]) -> None:
        """Returns when all of them have been ready.

        Raises:
            GritkitError: when one of them says that it cannot be, or the fleet is ended before.
        """
        self.replicas = {name: Replica(name, link) for name, link in links.items()}
        self._watchers = [asyncio.ensure_future(self._watch(one)) for one in self.replicas.values()]
        await self.until(lambda: self._ended or self._problem is not None or self._once_ready == self.replicas.keys())
        if self._problem is not None:
            raise GritkitError(self._problem)
        if self._ended:
            raise GritkitError("the server ended before its replicas were ready")

    async def until(self, met: Callable[[], bool]) -> None:
        """Wait for something that follows from the replicas' states."""
        async with self._changed:
            await self._changed.wait_for(met)

    async def end(self, drain_s: float) -> None:
        """Let the replicas finish within the time; what they do not answer by then is left. Once."""
        if self._ended:
            return
        self._ended = True
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        async with self._changed:
            self._changed.notify_all()
        stops = [asyncio.ensure_future(one.link.stop(drain_s)) for one in self.ready]
        if stops:
            _, late = await asyncio.wait(stops, timeout=drain_s + _RETRY_S)
            for stop in late:
                stop.cancel()
            await asyncio.gather(*stops, return_exceptions=True)

    # -- requests ------------------------------------------------------------------------------------------------

    async def answer(self, request: Forwarded) -> AsyncGenerator[Answered, None]:
        """What a replica answers.

        Raises:
            HttpError: when there is none, or it was lost at work.
        """
        tried: set[str] = set()
        wanted: str | None = None
        while True:
            one, begun = self._chosen(wanted, tried, request.follows), False
            names = self._able(tried) if request.found is None else ()
            try:
                async with aclosing(_pieces(one, replace(request, names=names))) as pieces:
                    async for piece in pieces:
                        if isinstance(piece, Moved):
                            request, wanted = replace(request, found=piece.question), piece.owner
                            self.num_moved += 1
                            break
                        begun = True
                        yield piece
                    else:
                        return
            except LostError:
                tried.add(one.name)
                if begun or not _is_repeatable(request.scope):
                    raise _broken(one, begun=begun) from None
                self.num_repeated += 1
                wanted = None

    def _chosen(self, wanted: str | None, tried: set[str], follows: str | None = None) -> Replica:
        able = [one for one in self.ready if one.name not in tried]
        for one in able:
            if one.name == wanted:
                return one
        if not able:
            raise HttpError(
                "no replica of the server is ready: GET /ready tells when one is",
                status=503, code="no_replica", retry_after_s=_RETRY_S,
            )  # fmt: skip
        if follows is not None:
            return self.replicas[ranked(follows, self._able(tried))[0]]
        return min(able, key=lambda one: one.inside)

    def _able(self, tried: set[str]) -> tuple[str, ...]:
        """Those that have not far more to do than the others."""
        ready = [one for one in self.ready if one.name not in tried]
        share = _MOST * (sum(one.inside for one in ready) + 1) / max(1, len(ready))
        most = max(_FEW, math.ceil(share))
        return tuple(one.name for one in ready if one.inside < most)

    # -- replicas ------------------------------------------------------------------------------------------------

    async def _watch(self, one: Replica) -> None:
        while True:
            try:
                async with aclosing(one.link.watch()) as notices:
                    async for notice in notices:
                        await self._note(one, notice)
            except LostError:
                pass
            except Exception as error:  # a defect on the other side; it is asked again as well
                log_failure(error, one.name, with_message=False)
            await self._lose(one)
            await asyncio.sleep(_PAUSE_S)

    async def _note(self, one: Replica, notice: Notice) -> None:
        for entry in notice.log:
            LOG.log(entry.level, entry.event, extra={"fields": {**entry.fields, "replica": one.name}})
        if (one.state, one.pid) == (notice.state, notice.pid) and notice.problem is None:
            return
        one.state, one.pid = notice.state, notice.pid
        fields = {"replica": one.name, "state": notice.state, "pid": notice.pid}
        LOG.info("replica", extra={"fields": fields})
        async with self._changed:
            if notice.state == "ready":
                self._once_ready.add(one.name)
            elif notice.problem is not None and one.name not in self._once_ready:
                self._problem = notice.problem
            self._changed.notify_all()

    async def _lose(self, one: Replica) -> None:
        if one.pid is not None:
            LOG.warning("replica lost", extra={"fields": {"replica": one.name, "pid": one.pid}})
        one.lost.set()
        one.state, one.pid, one.lost = "lost", None, asyncio.Event()
        one.num_lost += 1
        async with self._changed:
            if one.num_lost >= _LOST_WHILE_LOADING and one.name not in self._once_ready:
                times = f"ended {one.num_lost} times while it loaded the model"
                self._problem = f"{one.name} {times}: is there memory for all replicas?"
            self._changed.notify_all()


async def _pieces(one: Replica, request: Forwarded) -> AsyncGenerator[Piece, None]:
    """A replica's answer; what it has not begun when it is lost is not waited for until its successor is there."""
    one.inside += 1
    try:
        async with aclosing(one.link.answer(request)) as pieces:
            try:
                yield await _unless(one.lost, anext(pieces))
            except StopAsyncIteration:
                return
            async for piece in pieces:
                yield piece
    finally:
        one.inside -= 1


async def _unless(lost: asyncio.Event, wanted: Awaitable[T]) -> T:
    """Raises LostError when that comes first."""
    both: list[asyncio.Future[Any]] = [asyncio.ensure_future(wanted), asyncio.ensure_future(lost.wait())]
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not both[0].done():
            raise LostError
        result: T = both[0].result()
        return result
    finally:
        for one in both:
            one.cancel()
        await asyncio.gather(*both, return_exceptions=True)


def _is_repeatable(scope: Mapping[str, Any]) -> bool:
    return scope["method"] in ("GET", "HEAD") or REPEATABLE.fullmatch(scope["path"]) is not None


def _broken(one: Replica, *, begun: bool) -> HttpError:
    LOG.warning("a request was lost with its replica", extra={"fields": {"replica": one.name}})
    what = "in the middle of its answer" if begun else "and whether it was done is not known"
    return HttpError(
        f"the process that worked on this request ended, {what}: send it again", status=502, code="replica_lost"
    )
