from __future__ import annotations

from typing import Any

import anyio
import pytest
from fastapi import APIRouter, FastAPI
from prometheus_client.parser import text_string_to_metric_families

from gritkit.generation.decoder import Request
from gritkit.generation.params import SamplingParams
from gritkit_serve.app import create_app
from gritkit_serve.metrics import CONTENT_TYPE
from gritkit_serve.service import CallDep, Service, ServiceDep
from tests.models import grit_model
from tests.serve.serving import PATIENCE_S, Running, serving
from tests.serve.talking import until


def with_routes(service: Service) -> FastAPI:
    router = APIRouter()

    @router.post("/generate/{name}")
    async def generate(name: str, service: ServiceDep, call: CallDep) -> int:
        prompt = service.model.tokens.raw_prompt("the quick brown fox")
        generation = service.engine.generate(Request(prompt, SamplingParams(max_new_tokens=6)), salt=call.salt)
        async for _ in generation:
            call.token()
        call.use(prompt=len(prompt), completion=6)
        return len(prompt)

    app = create_app(service)
    app.include_router(router)
    return app


@pytest.fixture(scope="module")
def measured() -> Any:
    with serving(grit_model("qwen3"), app=with_routes) as running:
        yield running


def figures(running: Running) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample, read by Prometheus' own parser: (name, labels) -> value."""
    with running.client() as client:
        answer = client.get("/metrics")
    assert answer.headers["content-type"] == CONTENT_TYPE
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def of(figures: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    return figures.get((name, frozenset(labels.items())), 0.0)


def counted(running: Running, route: str) -> float:
    """Requests of a route that have come to their end, which is after their clients have the answer."""
    of_route = ("route", route)
    return sum(
        value for (name, labels), value in figures(running).items()
        if name == "gritkit_requests_total" and of_route in labels
    )  # fmt: skip


def test_a_generation_is_counted_by_its_route(measured: Running) -> None:
    route = "/generate/{name}"
    before = figures(measured)
    with measured.client() as client:
        prompt = sum(client.post(f"/generate/{name}").json() for name in "abc")
    assert until(lambda: counted(measured, route) == 3, PATIENCE_S)
    after = figures(measured)
    assert of(after, "gritkit_requests_total", route=route, method="POST", status="200") == 3
    assert of(after, "gritkit_request_seconds_count", route=route) == 3
    assert of(after, "gritkit_first_token_seconds_count", route=route) == 3
    assert of(after, "gritkit_between_tokens_seconds_count", route=route) >= 3
    assert of(after, "gritkit_tokens_total", route=route, kind="prompt") == prompt
    assert of(after, "gritkit_tokens_total", route=route, kind="completion") == 18
    for kind, count in (("finished", 3), ("completion_tokens", 18)):
        work = {"name": "gritkit_engine_work_total", "kind": kind}
        assert of(after, **work) - of(before, **work) == count
    assert of(after, "gritkit_engine_device_seconds_total", work="generation") > 0
    assert of(after, "gritkit_engine_ready") == 1
    assert of(after, "gritkit_engine_generations", state="waiting") == 0
    assert of(after, "gritkit_engine_failures_total") == 0
    assert of(after, "gritkit_requests_in_flight") == 1  # the one that asks


def test_labels_do_not_grow_with_what_clients_send(measured: Running) -> None:
    written, nowhere = counted(measured, "/generate/{name}"), counted(measured, "unmatched")
    with measured.client() as client:
        client.post("/generate/warm")
        client.get("/nowhere")
        client.request("BREW", "/nowhere")
        assert until(lambda: counted(measured, "/generate/{name}") == written + 1, PATIENCE_S)
        assert until(lambda: counted(measured, "unmatched") == nowhere + 1, PATIENCE_S)  # a BREW never gets that far
        before = set(figures(measured))
        for number in range(20):
            client.post(f"/generate/{number}")
            client.get(f"/nowhere/{number}", headers={"x-request-id": str(number)})
        assert set(figures(measured)) == before
    assert of(figures(measured), "gritkit_requests_total", route="unmatched", method="other", status="404") == 0
    names = {dict(labels).get("method") for _, labels in figures(measured)}
    assert "BREW" not in names


def test_servers_of_one_process_do_not_share_figures(measured: Running) -> None:
    with serving(None, app=with_routes) as other:
        assert not any(name.startswith("gritkit_engine") for name, _ in figures(other))
        assert of(figures(other), "gritkit_requests_total", route="/generate/{name}", method="POST", status="200") == 0


def test_they_are_read_while_the_model_works(measured: Running) -> None:
    async def both() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(anyio.to_thread.run_sync, lambda: figures(measured))

    anyio.run(both)
