"""A real server in a thread of this process, on a port of the loopback interface that the system chose.

    with serving(grit_model("qwen3")) as server:
        httpx.get(server.url + "/ready")

``server.service`` is the server's own, ``server.loop`` its event loop. The model is tiny and real, the engine is real,
and requests go through sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from starlette.types import ASGIApp

from gritkit.model import GritModel
from gritkit_serve.app import create_app
from gritkit_serve.listening import bind
from gritkit_serve.server import Server
from gritkit_serve.service import Service
from gritkit_serve.settings import Settings

PATIENCE_S = 30.0
"""For what takes milliseconds; only a defect takes longer."""


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    service: Service
    port: int
    loop: asyncio.AbstractEventLoop
    server: _Server
    thread: threading.Thread

    def draining(self) -> bool:
        """Whether it has begun to take nothing more."""
        return self.server.drains.wait(PATIENCE_S)

    def ended(self) -> bool:
        """Whether it has come to its end."""
        self.thread.join(PATIENCE_S)
        return not self.thread.is_alive()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **given: Any) -> httpx.Client:
        """A client of this server; it uses no proxy and no environment."""
        return httpx.Client(base_url=self.url, trust_env=False, timeout=PATIENCE_S, **given)

    def connect(self) -> socket.socket:
        """A bare connection, for what no client would send."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)

    def exchange(self, *pieces: bytes) -> bytes:
        """Send bytes as they are and read until the server closes the connection."""
        with self.connect() as connection:
            for piece in pieces:
                connection.sendall(piece)
            return rest(connection)


def rest(connection: socket.socket) -> bytes:
    """All that comes until the other side closes, or breaks off."""
    received = bytearray()
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(1 << 16):
            received += data
    return bytes(received)


class _Server(Server):
    """Tells when it listens and when it drains, instead of being asked again and again."""

    def __init__(self, service: Service, app: ASGIApp) -> None:
        super().__init__(service, app)
        self.listening = threading.Event()
        self.drains = threading.Event()
        self.loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.loop = asyncio.get_running_loop()
        self.listening.set()

    async def _end(self) -> None:
        asyncio.get_running_loop().call_soon(self.drains.set)  # when the gate is closed, before anybody has left
        await super()._end()


@contextlib.contextmanager
def serving(
    model: GritModel | None,
    *,
    settings: Settings | None = None,
    model_name: str = "tiny",
    adapters: Mapping[str, Path] | None = None,
    prepare: Callable[[Service], None] | None = None,
    app: Callable[[Service], ASGIApp] = create_app,
    **limits: Any,
) -> Iterator[Running]:
    """Serve until the block ends. Without a model the server is one that still loads it.

    ``limits`` are those of ``EngineLimits``; ``prepare`` gets the service before the first request (to give it bases);
    ``app`` makes the application, that of the server if not given.
    """
    service = Service(model_name, settings or Settings(drain_seconds=2.0))
    if model is not None:
        from gritkit_serve.engine import Engine, EngineLimits

        engine = Engine(model, limits=EngineLimits(**limits), adapters=adapters)
        engine.start()
        service.attach(engine)
    if prepare is not None:
        prepare(service)
    with contextlib.closing(bind("127.0.0.1", 0)) as listener:
        server = _Server(service, app(service))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="server")
        thread.start()
        try:
            assert server.listening.wait(PATIENCE_S)
            assert server.loop is not None
            yield Running(service, listener.getsockname()[1], server.loop, server, thread)
        finally:
            server.leave()
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
