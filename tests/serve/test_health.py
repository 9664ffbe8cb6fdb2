from __future__ import annotations

import asyncio
import threading
import time

import pytest

from gritkit.generation.decoder import Request
from gritkit.generation.params import SamplingParams
from gritkit_serve.engine import EngineFailed
from gritkit_serve.service import Service
from tests.models import grit_model
from tests.serve.serving import PATIENCE_S, Running, serving


def test_a_server_that_loads_lives_and_is_not_ready(loading: Running) -> None:
    with loading.client() as client:
        health, ready = client.get("/health"), client.get("/ready")
    assert (health.status_code, health.json()) == (200, {"status": "ok", "state": "loading"})
    assert ready.status_code == 503
    assert int(ready.headers["retry-after"]) > 0
    assert ready.json()["error"] == {
        "message": "not ready: loading", "type": "unavailable_error", "param": None, "code": "loading",
    }  # fmt: skip


def test_load_balancers_may_ask_by_head(loading: Running) -> None:
    with loading.client() as client:
        assert client.head("/health").status_code == 200
        assert client.head("/ready").status_code == 503
        assert client.head("/ready").content == b""


def test_a_server_with_its_model_is_ready(server: Running) -> None:
    with server.client() as client:
        assert client.get("/health").json() == {"status": "ok", "state": "ready"}
        answer = client.get("/ready")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})


def test_a_server_whose_engine_stopped_lives_and_is_not_ready() -> None:
    with serving(grit_model("qwen3")) as running, running.client() as client:
        assert client.get("/ready").status_code == 200
        running.service.engine.stop(drain_s=0)
        ready = client.get("/ready")
        assert (ready.status_code, ready.json()["error"]["code"]) == (503, "stopped")
        assert client.get("/health").status_code == 200


def test_an_engine_that_fails_is_seen_and_comes_back() -> None:
    """A pass that fails for no request's own reason: not ready until a pass succeeds again."""
    model = grit_model("qwen3")
    layer = model.lm.model.layers[0]
    with serving(model) as running, running.client() as client:
        states: list[int] = []
        tried_again = threading.Event()

        def fail(*_: object) -> None:
            states.append(client.get("/ready").status_code)
            if len(states) < 3:
                raise RuntimeError("the device is gone")
            tried_again.set()

        hook = layer.register_forward_pre_hook(fail)
        generation = asyncio.run_coroutine_threadsafe(generated(running.service), running.loop)
        with pytest.raises(EngineFailed):
            generation.result(PATIENCE_S)
        assert tried_again.wait(PATIENCE_S)
        hook.remove()
        assert states[:3] == [200, 503, 503]
        until = time.monotonic() + PATIENCE_S
        while client.get("/ready").status_code != 200:
            assert time.monotonic() < until
        assert asyncio.run_coroutine_threadsafe(generated(running.service), running.loop).result(PATIENCE_S) == 4


async def generated(service: Service) -> int:
    request = Request(service.model.tokens.raw_prompt("the fox"), SamplingParams(max_new_tokens=4))
    return (await service.engine.generate(request).result()).usage.completion_tokens
