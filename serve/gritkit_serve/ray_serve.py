"""``gritkit serve --replicas N --engine ray``: the server's application N times on Ray Serve, on this machine.

    this process    the port, HTTP and its bounds, keys, limits, drain (``ray_front``), which replica gets a request and
                    what happens when one is lost (``ray_fleet``); no model
    N processes     each the single server's application with a model (``ray_replica``); Ray starts them, gives each its
                    GPU or CPUs, looks after them and starts another one where one has ended
    one folder      knowledge bases and their blocks; writers are kept apart by its lock (``gritkit.rag.lock``), which
                    holds on one machine only, and so does this

Why not Ray Serve's own HTTP proxy: it reads bodies of any size before a key is checked, has no bounds for headers,
connections and slow clients, takes timeouts from its clients' headers, and answers a lost replica with an error of its
own form. So requests come through this process, as those of the single server, and go to replicas by handles.

Why every replica is an application of its own, with one replica in Ray's sense: under its name it can be asked for, and
its successor has the same name, so that its documents come back to it. Replicas of one application have a new name in
each life, and are chosen by a request router, whose interface is not stable yet.

Ray is not safe by default. The cluster that is started here listens on loopback, has no dashboard, and ends with this
process, however that ends; who has not its token, which is made anew each time, can do nothing in it. The port that Ray
Serve opens on all interfaces in each replica, for calls that nobody makes here, is kept to loopback as well.

This module knows nothing about routes, or what is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import aclosing
from typing import Any

from uvicorn.server import HANDLED_SIGNALS

from gritkit.errors import InputError, MissingExtraError, StoreError
from gritkit.rag.ray_cluster import RayOptions, connected, first_line, pool_of, quiet
from gritkit_serve.ray_fleet import Forwarded, Link, LostError, Notice, Piece
from gritkit_serve.ray_front import Front, create_front
from gritkit_serve.ray_replica import AppReplica, Plan, ProcessLog
from gritkit_serve.server import Server

DEPLOYMENT = "gritkit"
_VARIABLES = {
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # else a call that comes when Ray has ended starts another cluster, an open one
    "RAY_worker_niceness": "0",  # else replicas are more patient than everything else on the machine
}
_TOKEN = "RAY_AUTH_TOKEN"
_HEALTH_PERIOD_S = 5.0
_HEALTH_PATIENCE_S = 60.0
"""A process that computes may be slow to answer."""
_BESIDE_REQUESTS = 16
"""Calls that are none: how it is, its figures, its end."""
_END_S = 8.0
"""For Ray's processes to end."""

_log = logging.getLogger("gritkit.serve")


class ServedReplica(AppReplica):
    """A replica in its process, in the folder that the server was started in."""

    def __init__(self, name: str, plan: Plan, folder: str) -> None:
        _keep_to_loopback()
        os.chdir(folder)
        super().__init__(name, plan, log=ProcessLog())

    def check_health(self) -> None:
        """Ray Serve's own question; it starts another process where this raises."""
        self.check()


class RayService(Front):
    """The service of a server whose replicas run on a Ray cluster of its own."""

    def __init__(self, plan: Plan, num_replicas: int, *, device: str | None) -> None:
        if importlib.util.find_spec("ray") is None:
            raise MissingExtraError("ray[serve]", "scale")
        super().__init__(plan.model_name, plan.settings, num_replicas=num_replicas)
        self.loop: Future[asyncio.AbstractEventLoop] = Future()
        """The server's, when it runs."""
        self.on_start: Callable[[], None] = lambda: None
        """Is called in it when Ray has been started."""
        self._plan = plan
        self._num_replicas = num_replicas
        self._device = device
        self._up: Future[None] = Future()
        self._leave = threading.Event()
        # The thread that starts Ray's processes must stay: they end with it, so that they end with this process.
        self._owner = threading.Thread(target=self._own, name="gritkit-ray", daemon=True)

    def begin(self) -> None:
        """Returns when all replicas are ready.

        Raises:
            StoreError: where Ray cannot be started. InputError: for more replicas than there is room for.
            GritkitError: with a replica's reason, when one cannot load the model.
        """
        self._owner.start()
        self._up.result()

    def stop(self, drain_s: float) -> None:
        deadline = time.monotonic() + drain_s
        with contextlib.suppress(FutureTimeoutError):
            self._in_loop(self.fleet.end(drain_s)).result(drain_s + _END_S)
        self._leave.set()
        if self._owner.is_alive():
            self._owner.join(max(0.0, deadline - time.monotonic()) + _END_S)

    def _in_loop(self, work: Coroutine[Any, Any, None]) -> Future[None]:
        return asyncio.run_coroutine_threadsafe(work, self.loop.result())

    def _own(self) -> None:
        try:
            with self._replicas() as links:
                self.loop.result().call_soon_threadsafe(self.on_start)
                try:
                    self._in_loop(self.fleet.begin(links)).result()
                    self._up.set_result(None)
                    self._leave.wait()
                finally:  # nobody calls into Ray any more when it ends
                    self._in_loop(self.fleet.end(0)).result()
        except BaseException as error:
            if self._up.done():
                _log.warning("Ray's processes did not end as they should: %s", first_line(error))
            else:
                self._up.set_exception(error)

    @contextlib.contextmanager
    def _replicas(self) -> Iterator[dict[str, Link]]:
        os.environ.update(_VARIABLES | {_TOKEN: secrets.token_hex(32)})  # before Ray is imported; for its processes
        ray, serve = _modules()
        with quiet("ray.serve"), connected(ray, None):
            pool = pool_of(ray, self._device, RayOptions(num_actors=self._num_replicas))
            if pool.num_actors < self._num_replicas:
                what = "GPU" if pool.gpus else "CPU"
                raise InputError(
                    f"--replicas {self._num_replicas}: this machine has room for {pool.num_actors}, one for each {what}"
                )
            logs = {"log_level": "ERROR", "enable_access_log": False}
            deployment = serve.deployment(
                ServedReplica,
                name=DEPLOYMENT,
                num_replicas=1,
                ray_actor_options={"num_cpus": pool.cpus, "num_gpus": pool.gpus},
                max_ongoing_requests=self.settings.max_requests + _BESIDE_REQUESTS,
                health_check_period_s=_HEALTH_PERIOD_S,
                health_check_timeout_s=_HEALTH_PATIENCE_S,
                logging_config=logs,
            )
            links: dict[str, Link] = {}
            try:
                serve.start(proxy_location="Disabled", logging_config=logs)
                for name in (f"replica-{number}" for number in range(self._num_replicas)):
                    bound = deployment.bind(name, self._plan, os.getcwd())
                    links[name] = RayLink(serve.run(bound, name=name, route_prefix=None), ray)
            except (RuntimeError, ray.exceptions.RayError) as error:
                raise StoreError(f"cannot start replicas on Ray Serve: {first_line(error)}") from error
            yield links


class FrontServer(Server):
    """Tells its service the event loop, and keeps its signals."""

    def __init__(self, service: RayService) -> None:
        super().__init__(service, create_front(service))
        self._front = service
        service.on_start = self._handle_signals

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self._front.loop.set_result(asyncio.get_running_loop())

    def _handle_signals(self) -> None:
        """Again: Ray has put a handler before those of uvicorn, which writes a stack trace at the first SIGTERM."""
        for number in HANDLED_SIGNALS:
            signal.signal(number, self.handle_exit)


class RayLink:
    """The way to a replica by the handle of its application."""

    def __init__(self, handle: Any, ray: Any) -> None:
        stream = handle.options(stream=True)
        self._answer = stream.options(method_name="answer")
        self._watch = stream.options(method_name="watch")
        self._metrics = handle.options(method_name="metrics")
        self._stop = handle.options(method_name="stop")
        self._lost: type[Exception] = ray.exceptions.RayError
        self._failed: type[Exception] = ray.exceptions.RayTaskError

    async def answer(self, request: Forwarded) -> AsyncGenerator[Piece, None]:
        async with aclosing(self._items(self._answer.remote(request))) as pieces:
            async for piece in pieces:
                yield piece

    async def watch(self) -> AsyncGenerator[Notice, None]:
        async with aclosing(self._items(self._watch.remote())) as notices:
            async for notice in notices:
                yield notice

    async def metrics(self) -> str:
        text: str = await self._metrics.remote()
        return text

    async def stop(self, drain_s: float) -> None:
        await self._stop.remote(drain_s)

    async def _items(self, response: Any) -> AsyncGenerator[Any, None]:
        whole = False
        try:
            async for item in response:
                yield item
            whole = True
        except self._failed:  # a defect of ours in the replica, which lives on
            raise
        except self._lost as error:
            raise LostError from error
        finally:
            if not whole:
                with contextlib.suppress(self._lost):  # the cluster has ended
                    response.cancel()


def _modules() -> tuple[Any, Any]:
    try:
        import ray
        from ray import serve
    except ImportError:
        raise MissingExtraError("ray[serve]", "scale") from None
    return ray, serve


def _keep_to_loopback() -> None:
    """In a replica's process, before Ray Serve opens its port for calls between deployments on all interfaces."""
    from ray.serve._private import replica

    module: Any = replica
    add_port = module.add_port_to_grpc_server
    module.add_port_to_grpc_server = lambda server, address: add_port(server, address.replace("[::]", "127.0.0.1"))
