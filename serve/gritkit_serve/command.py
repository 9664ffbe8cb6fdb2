"""``gritkit serve``: chat, embeddings, reranking and question answering over HTTP, from one model.

The port is bound first, so an address in use is known at once; then torch is imported, from then on /health answers and
/ready says that it is not yet; then the model is loaded. This module knows nothing about routes.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gritkit.allocator import share_heaps
from gritkit.cli import engine as engines
from gritkit.cli import options as common
from gritkit.cli.loading import open_model
from gritkit.cli.output import note, write
from gritkit.errors import InputError
from gritkit.files import resolve
from gritkit_serve import options
from gritkit_serve.listening import address_of, bind
from gritkit_serve.settings import MIB, Settings

if TYPE_CHECKING:
    from gritkit_serve.server import Server
    from gritkit_serve.service import Service

_DEFAULTS = Settings()
_THREADS_END_S = 1.0


def serve(
    context: typer.Context,
    source: options.Source = None,
    model: common.Model = None,
    kb: options.KnowledgeBases = None,
    host: options.Host = "127.0.0.1",
    port: options.Port = 8000,
    api_key_file: options.ApiKeyFile = None,
    adapter: options.Adapter = None,
    model_name: options.ModelName = None,
    allow_origin: options.AllowOrigin = None,
    log_prompts: options.LogPrompts = False,
    slots: options.Slots = None,
    max_length: options.MaxLength = None,
    max_waiting: options.MaxWaiting = None,
    max_requests: options.MaxRequests = _DEFAULTS.max_requests,
    max_tokens: options.MaxTokens = _DEFAULTS.default_max_tokens,
    max_body_mib: options.MaxBodyMib = _DEFAULTS.max_body_bytes / MIB,
    max_upload_mib: options.MaxUploadMib = _DEFAULTS.max_upload_bytes / MIB,
    request_seconds: options.RequestSeconds = _DEFAULTS.request_seconds,
    drain_seconds: options.DrainSeconds = _DEFAULTS.drain_seconds,
    device: common.Device = None,
    dtype: common.Dtype = "auto",
    prompt_format: common.PromptFormat = None,
    trust_remote_code: common.TrustRemoteCode = False,
    engine: options.EngineOption = engines.Engine.local,
    replicas: options.Replicas = None,
) -> None:
    """Serve chat, embeddings, reranking and question answering over HTTP, from one model.

    Speaks the OpenAI API: point a client at http://HOST:PORT/v1. SIGTERM or Ctrl-C lets running requests end, a second
    one ends at once.
    """
    name = _model(context, source, model)
    called = model_name or _name_of(name)
    replicas = _replicas(engine, replicas)
    adapters = _adapters(adapter or [], called)
    settings = Settings(
        api_keys=_keys(api_key_file, host, allow_origin or []),
        allow_origins=tuple(allow_origin or ()),
        log_prompts=log_prompts,
        max_requests=max_requests,
        default_max_tokens=max_tokens,
        max_body_bytes=_bytes_of("--max-body-mib", max_body_mib),
        max_upload_bytes=_bytes_of("--max-upload-mib", max_upload_mib),
        request_seconds=request_seconds,
        drain_seconds=drain_seconds,
    )

    def load(service: Service) -> None:
        share_heaps()  # a replica's process begins here
        grit = open_model(
            name, device=device, dtype=dtype, prompt_format=prompt_format, trust_remote_code=trust_remote_code
        )
        from gritkit_serve.engine import Engine, EngineLimits

        given = {"slots": slots, "slot_tokens": max_length, "waiting_generations": max_waiting}
        limits = EngineLimits(**{limit: value for limit, value in given.items() if value is not None})
        engine = Engine(grit, limits=limits, adapters=adapters)
        engine.start()
        if kb is not None:
            from gritkit_serve.bases import Bases

            service.bases = Bases(kb, engine, settings=settings)
        service.attach(engine)

    if replicas is None:
        run(called, settings, host, port, load)
    else:
        run_replicas(called, settings, host, port, load, replicas, device=device)


def run(model_name: str, settings: Settings, host: str, port: int, load: Callable[[Service], None]) -> None:
    """Serve from this process until a signal. ``load`` gives the service its engine."""

    def make() -> tuple[Server, Callable[[], None]]:
        from gritkit_serve.app import create_app
        from gritkit_serve.server import Server
        from gritkit_serve.service import Service

        service = Service(model_name, settings)
        return Server(service, create_app(service)), lambda: load(service)

    _run(make, model_name, host, port)


def run_replicas(
    model_name: str,
    settings: Settings,
    host: str,
    port: int,
    load: Callable[[Service], None],
    number: int,
    *,
    device: str | None,
) -> None:
    """The same from several processes; each calls ``load``."""

    def make() -> tuple[Server, Callable[[], None]]:
        from gritkit_serve.ray_replica import Plan
        from gritkit_serve.ray_serve import FrontServer, RayService

        service = RayService(Plan(model_name, settings, load), number, device=device)
        return FrontServer(service), service.begin

    _run(make, model_name, host, port)


def _run(make: Callable[[], tuple[Server, Callable[[], None]]], model_name: str, host: str, port: int) -> None:
    """``make`` gives a server and what makes it ready; that runs in a thread of its own, and what it raises comes out
    here. The address is taken before both, which import torch."""
    share_heaps()  # before there are threads to have heaps
    started = time.monotonic()
    failures: list[BaseException] = []
    with contextlib.closing(bind(host, port)) as listener:
        server, get_ready = make()

        def start() -> None:
            try:
                get_ready()
            except BaseException as error:
                failures.append(error)
                server.leave()
                return
            with contextlib.suppress(OSError):  # nobody has to read it
                seconds = time.monotonic() - started
                write(f"{model_name} is ready at {address_of(listener)} after {seconds:.1f} s\n")

        threading.Thread(target=start, name="gritkit-loader", daemon=True).start()
        server.run(sockets=[listener])
    if failures:
        raise failures[0]
    _end_threads()


def _model(context: typer.Context, source: str | None, model: str | None) -> str:
    """MODEL or what -m gives, but not both: GRITKIT_MODEL alone is passed over for MODEL."""
    name = source or model
    if not name:
        raise typer.BadParameter("no model: give MODEL, -m/--model FOLDER, or set GRITKIT_MODEL")
    given = context.get_parameter_source("model")
    if source and given is not None and given.name == "COMMANDLINE":
        raise typer.BadParameter(f"two models, MODEL {source!r} and -m {model!r}: give one of them")
    return name


def _keys(file: Path | None, host: str, origins: list[str]) -> tuple[str, ...]:
    """Raises InputError for a server that would be open to whom it should not be."""
    from gritkit_serve import logs
    from gritkit_serve.access import check_host, check_origins, read_keys

    logs.configure()
    keys = read_keys(file)
    check_host(host, keyed=bool(keys))
    check_origins(origins, keyed=bool(keys))
    return keys


def _bytes_of(option: str, mib: float) -> int:
    """Raises InputError for what is no size."""
    size = mib * MIB
    if not 1 <= size < math.inf:
        raise InputError(f"{option} {mib:g} must be a number above 0")
    return round(size)


def _adapters(given: list[str], called: str) -> dict[str, Path]:
    """Of NAME=FOLDER, beside a model that clients call so."""
    adapters: dict[str, Path] = {}
    for one in given:
        name, _, folder = one.partition("=")
        if not name or not folder:
            raise typer.BadParameter(f"--adapter {one!r} must be NAME=FOLDER")
        if name in adapters:
            raise typer.BadParameter(f"--adapter {name!r} is given twice")
        if name == called:
            raise typer.BadParameter(
                f"--adapter {name!r} is called like the model: give it another name, or the model by --model-name"
            )
        if not resolve(folder).is_dir():
            raise InputError(f"--adapter {name}: there is no folder {folder}")
        adapters[name] = resolve(folder)
    return adapters


def _replicas(engine: engines.Engine, replicas: int | None) -> int | None:
    """How many, None for this process alone."""
    if engine is engines.Engine.ray:
        if replicas is None:
            raise typer.BadParameter("--engine ray needs --replicas N")
        return replicas
    if replicas is not None:
        note("Warning: --replicas has no effect without --engine ray")
    return None


def _name_of(model: str) -> str:
    """A folder's own name, or the hub id."""
    return resolve(model).name if Path(model).is_dir() else model


def _end_threads() -> None:
    """Threads that are still at work (a model being loaded, a call that nobody waits for) must not hold up the end, nor
    run on while the interpreter is taken apart under them."""
    deadline = time.monotonic() + _THREADS_END_S
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))
    if threading.active_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


app = common.app_of(serve)
