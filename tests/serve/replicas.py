"""Several replicas of the server in this process: their real applications, engines and knowledge bases, and the real
side that clients see, without Ray between them.

    with replicated(folder) as fleet:
        fleet.client().get("/ready")
        fleet.links["replica-0"].kill()
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

from gritkit_serve.bases import Bases
from gritkit_serve.engine import Engine, EngineLimits
from gritkit_serve.listening import bind
from gritkit_serve.ray_fleet import Forwarded, LostError, Notice, Piece
from gritkit_serve.ray_front import Front, create_front
from gritkit_serve.ray_replica import AppReplica, Plan
from gritkit_serve.service import Service
from gritkit_serve.settings import Settings
from tests.serve.knowledge import model
from tests.serve.serving import PATIENCE_S, _Server

T = TypeVar("T")
_MAKING = threading.Lock()  # models get equal weights by torch's one seed


class LocalLink:
    """A way to a replica in this process, which can end as a process ends: whatever it does breaks off."""

    def __init__(self, name: str, plan: Plan) -> None:
        self.name = name
        self.replica = AppReplica(name, plan)
        self.num_answers = 0
        self._plan = plan
        self._ended = asyncio.Event()
        self._back = asyncio.Event()
        self._back.set()

    def kill(self) -> None:
        """Of the event loop's own."""
        self.replica.service.stop(0)
        self._back.clear()
        self._ended.set()

    def revive(self) -> None:
        """Ray's part."""
        self.replica = AppReplica(self.name, self._plan)
        self._ended = asyncio.Event()
        self._back.set()

    async def _until_end(self, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        ended = asyncio.ensure_future(self._ended.wait())
        try:
            while True:
                following = asyncio.ensure_future(anext(items))
                try:
                    await asyncio.wait({following, ended}, return_when=asyncio.FIRST_COMPLETED)
                    if ended.done():
                        raise LostError
                    item = following.result()
                except StopAsyncIteration:
                    return
                finally:
                    following.cancel()
                    await asyncio.gather(following, return_exceptions=True)
                yield item
        finally:
            ended.cancel()
            await items.aclose()

    async def answer(self, request: Forwarded) -> AsyncGenerator[Piece, None]:
        await self._back.wait()  # Ray keeps what comes meanwhile for the successor
        self.num_answers += 1
        async with contextlib.aclosing(self._until_end(self.replica.answer(request))) as pieces:
            async for piece in pieces:
                yield piece

    async def watch(self) -> AsyncGenerator[Notice, None]:
        await self._back.wait()
        async with contextlib.aclosing(self._until_end(self.replica.watch())) as notices:
            async for notice in notices:
                yield notice

    async def metrics(self) -> str:
        if self._ended.is_set():
            raise LostError
        return await self.replica.metrics()

    async def stop(self, drain_s: float) -> None:
        await self.replica.stop(drain_s)


@dataclass(frozen=True)
class Replicated:
    """A server of several replicas that answers."""

    front: Front
    links: dict[str, LocalLink]
    port: int
    loop: asyncio.AbstractEventLoop

    def client(self, **given: Any) -> httpx.Client:
        """Of the server, as any client is."""
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", trust_env=False, timeout=PATIENCE_S, **given)

    def do(self, work: Callable[[], T]) -> T:
        """In the event loop."""

        async def worked() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(worked(), self.loop).result(PATIENCE_S)

    def wait(self, until: Callable[[], bool]) -> None:
        """Until it is so, of the replicas' states."""
        waiting = asyncio.wait_for(self.front.fleet.until(until), PATIENCE_S)
        asyncio.run_coroutine_threadsafe(waiting, self.loop).result()

    def reads(self, name: str, tier: str) -> int:
        """Documents' key-values that a replica had in one of its tiers."""
        bases = self.links[name].replica.service.bases
        assert bases is not None
        return bases.counts()[tier]


def plan_of(folder: Path, settings: Settings, **limits: Any) -> Plan:
    def load(service: Service) -> None:
        with _MAKING:
            made = model()
        engine = Engine(made, limits=EngineLimits(**limits))
        engine.start()
        service.bases = Bases(folder, engine, settings=settings)
        service.attach(engine)

    return Plan("tiny", settings, load)


@contextlib.contextmanager
def replicated(
    folder: Path, *, number: int = 2, settings: Settings | None = None, plan: Plan | None = None, **limits: Any
) -> Iterator[Replicated]:
    """Serve until the block ends, when all replicas are ready."""
    settings = settings or Settings(drain_seconds=2.0)
    plan = plan or plan_of(folder, settings, **limits)
    front = Front("tiny", settings, num_replicas=number)
    with contextlib.closing(bind("127.0.0.1", 0)) as listener:
        server = _Server(front, create_front(front))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="server")
        thread.start()
        try:
            assert server.listening.wait(PATIENCE_S)
            loop = server.loop
            assert loop is not None

            async def begin() -> dict[str, LocalLink]:
                links = {f"replica-{index}": LocalLink(f"replica-{index}", plan) for index in range(number)}
                await front.fleet.begin(links)
                return links

            links = asyncio.run_coroutine_threadsafe(begin(), loop).result(PATIENCE_S)
            yield Replicated(front, links, listener.getsockname()[1], loop)
        finally:
            server.leave()
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
