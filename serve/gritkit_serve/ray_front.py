"""The side of several replicas that clients see: one server, with all layers of the single one, that answers nothing
itself which needs a model.

A request passes the layers here (key, limits, deadline, drain), goes to a replica as a whole, and its answer comes back
as it is made; the replica is the same application, and checks the key and the body once more. /metrics is what this
process counts of requests, and everything else that each replica counts.

This module knows nothing about Ray, models or which replica gets a request.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from contextlib import aclosing
from typing import Any

import anyio
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gritkit_serve.admission import Gate
from gritkit_serve.app import create_app
from gritkit_serve.calls import Call
from gritkit_serve.errors import HttpError
from gritkit_serve.metrics import CONTENT_TYPE
from gritkit_serve.placement import conversation_of
from gritkit_serve.ray_fleet import Fleet, Forwarded, Replica, Report
from gritkit_serve.service import Service, State
from gritkit_serve.settings import Settings

LOCAL = re.compile(r"/|/health|/ready|/static/.*|/openapi\.json", re.DOTALL)
"""What needs no model."""
METRICS = "/metrics"
CHAT = "/v1/chat/completions"
_METRICS_PATIENCE_S = 5.0
_OWN = ("gritkit_requests", "gritkit_request_seconds")
"""Begin the names of what is counted here, as clients see it."""
_PASSED_ON = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "client")
"""Of a request's scope, with its headers: what an application may look at and another process can be sent."""


class Front(Service):
    """As a server's service, of several replicas."""

    def __init__(self, model_name: str, settings: Settings, *, num_replicas: int) -> None:
        super().__init__(model_name, settings)
        self.fleet = Fleet()
        self.gate = Gate(settings.max_requests * num_replicas)
        self.metrics.watch(lambda: _of_fleet(self.fleet))

    @property
    def state(self) -> State:
        if self.gate.closed:
            return "draining"
        if self.fleet.ready:
            return "ready"
        return "starting" if self.fleet.began else "loading"


def create_front(front: Front) -> FastAPI:
    """The single server's application, with a relay to the replicas in front of its routes."""
    app = create_app(front)
    app.user_middleware.append(Middleware(Relay, front=front))  # the innermost: after every layer
    return app


class Relay:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, *, front: Front) -> None:
        self._app = app
        self._front = front
        self._held = 0
        """Bytes of files in memory."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or LOCAL.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
        elif scope["path"] == METRICS and scope["method"] == "GET":
            scope["route"] = _Route(METRICS)
            text = await _all_metrics(self._front)
            await Response(text, media_type=CONTENT_TYPE)(scope, receive, send)
        else:
            await self._relay(scope, receive, send)

    async def _relay(self, scope: Scope, receive: Receive, send: Send) -> None:
        call: Call = scope["state"]["call"]
        held = 0
        try:
            pieces: list[bytes] = []
            more = True
            while more:
                message = await _received(receive)
                if message["type"] == "http.disconnect":
                    return
                pieces.append(message.get("body", b""))
                held += len(pieces[-1])
                self._hold(len(pieces[-1]))
                more = message.get("more_body", False)
            body = b"".join(pieces)
            follows = conversation_of(body) if scope["path"] == CHAT else None
            request = Forwarded(_passed_on(scope, call.id), body, follows=follows)
            async with aclosing(self._front.fleet.answer(request)) as answer:
                async for piece in answer:
                    if isinstance(piece, Report):
                        _note(scope, call, piece)
                    else:
                        for message in piece:
                            await send(message)
        finally:
            self._held -= held

    def _hold(self, count: int) -> None:
        self._held += count
        if self._held > self._front.settings.max_buffered_bytes:
            raise HttpError(
                "the server holds as many request bodies as it may: try again in 1 s",
                status=429, code="too_many_bytes", retry_after_s=1,
            )  # fmt: skip


async def _received(receive: Receive) -> Mapping[str, Any]:
    """Files come through a layer whose refusals have the form that FastAPI's routes take them in."""
    try:
        return await receive()
    except HTTPException as error:
        raise HttpError(str(error.detail), status=error.status_code, headers=error.headers) from error


def _passed_on(scope: Scope, id: str) -> dict[str, Any]:
    headers = [(name, value) for name, value in scope["headers"] if name != b"x-request-id"]
    passed = {name: scope[name] for name in _PASSED_ON if name in scope}
    return {**passed, "headers": [*headers, (b"x-request-id", id.encode())]}


class _Route:
    """What a :class:`Call` asks a route for."""

    def __init__(self, path: str) -> None:
        self.path = path


def _note(scope: Scope, call: Call, report: Report) -> None:
    """For the log; the replica has counted it."""
    scope["route"] = _Route(report.route)
    call.prompt_tokens, call.cached_tokens = report.prompt_tokens, report.cached_tokens
    call.completion_tokens, call.first_token_s = report.completion_tokens, report.first_token_s


# -- metrics -----------------------------------------------------------------------------------------------------------


async def _all_metrics(front: Front) -> bytes:
    async def of(one: Replica) -> tuple[str, str]:
        try:
            with anyio.fail_after(_METRICS_PATIENCE_S):
                return one.name, await one.link.metrics()
        except Exception:
            return one.name, ""

    texts = dict(await asyncio.gather(*(of(one) for one in front.fleet.ready)))
    return merged(front.metrics.text().decode(), texts)


def merged(own: str, texts: Mapping[str, str]) -> bytes:
    """Every figure with the label ``replica``; how many requests there were, and how long they took, by ``own``."""
    families: dict[str, Metric] = {}
    for name, text in {"front": own, **texts}.items():
        for family in text_string_to_metric_families(text):
            if name != "front" and family.name.startswith(_OWN):
                continue
            known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                known.add_sample(sample.name, {**sample.labels, "replica": name}, sample.value)
    registry = CollectorRegistry()
    registry.register(_Families(families.values()))
    return generate_latest(registry)


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _of_fleet(fleet: Fleet) -> Iterable[Metric]:
    ready = len(fleet.ready)
    states = {"ready": ready, "not_ready": len(fleet.replicas) - ready}
    replicas = GaugeMetricFamily("gritkit_replicas", "Replicas by state.", labels=("state",))
    for state, count in states.items():
        replicas.add_metric((state,), count)
    yield replicas
    yield CounterMetricFamily(
        "gritkit_moved", "Requests that went on to the replica of their documents.", value=fleet.num_moved
    )
    yield CounterMetricFamily(
        "gritkit_repeated", "Requests that another replica got after the first was lost.", value=fleet.num_repeated
    )
