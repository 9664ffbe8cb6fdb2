from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from gritkit_serve.app import create_app
from gritkit_serve.service import Service
from gritkit_serve.settings import Settings
from tests.serve.serving import PATIENCE_S, serving
from tests.serve.talking import until


class Held:
    """Routes that end when they are told to."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.release = threading.Event()

    def app(self, service: Service) -> FastAPI:
        app = create_app(service)

        @app.get("/hold")
        async def hold() -> str:
            self.begun.release()
            await anyio.to_thread.run_sync(self.release.wait, PATIENCE_S)
            return "whole"

        @app.get("/forever")
        async def forever() -> None:
            await anyio.sleep_forever()

        @app.get("/events")
        async def events() -> StreamingResponse:
            async def pieces() -> AsyncIterator[bytes]:
                yield b"data: 1\n\n"
                await anyio.sleep_forever()

            return StreamingResponse(pieces(), media_type="text/event-stream")

        return app


@pytest.fixture
def held() -> Any:
    held = Held()
    yield held
    held.release.set()


def test_more_than_the_server_works_on_are_told_to_come_again(held: Held) -> None:
    with serving(None, settings=Settings(max_requests=2, drain_seconds=5), app=held.app) as running:
        answers: list[int] = []
        with running.client() as client:
            threads = [threading.Thread(target=lambda: answers.append(client.get("/hold").status_code)) for _ in "12"]
            for thread in threads:
                thread.start()
                assert held.begun.acquire(timeout=PATIENCE_S)
            refused = client.get("/hold")
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert refused.json()["error"]["code"] == "too_many_requests"
            assert client.get("/health").status_code == 200
            assert client.get("/metrics").status_code == 200
            held.release.set()
            for thread in threads:
                thread.join(PATIENCE_S)
            assert answers == [200, 200]
            assert until(lambda: running.service.gate.inside == 0, PATIENCE_S)  # an answer is there before its end is
            assert client.get("/hold").status_code == 200
            assert until(lambda: running.service.gate.inside == 0, PATIENCE_S)


def test_a_request_ends_at_its_deadline() -> None:
    with serving(None, settings=Settings(request_seconds=0.2), app=Held().app) as running, running.client() as client:
        answer = client.get("/forever")
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline")
        assert answer.headers["x-should-retry"] == "false"
        stream = client.get("/events")
        assert stream.status_code == 200
        first, last = stream.text.split("\n\n")[:2]
        assert first == "data: 1"
        assert '"code": "deadline"' in last


def test_a_draining_server_ends_what_runs_and_takes_nothing_new(held: Held) -> None:
    with (
        serving(None, settings=Settings(drain_seconds=PATIENCE_S), app=held.app) as running,
        running.client() as client,
    ):
        answers: list[str] = []
        thread = threading.Thread(target=lambda: answers.append(client.get("/hold").json()))
        thread.start()
        assert held.begun.acquire(timeout=PATIENCE_S)
        running.server.leave()
        assert running.draining()
        assert client.get("/health").json() == {"status": "ok", "state": "draining"}
        ready, work = client.get("/ready"), client.get("/hold")
        assert (ready.status_code, ready.json()["error"]["code"]) == (503, "draining")
        assert (work.status_code, work.json()["error"]["code"]) == (503, "draining")
        assert int(work.headers["retry-after"]) > 0
        assert not answers
        held.release.set()
        thread.join(PATIENCE_S)
        assert answers == ["whole"]
        assert running.ended()


def test_what_does_not_end_while_draining_is_cancelled() -> None:
    settings = Settings(drain_seconds=0.2)
    with (
        serving(None, settings=settings, app=Held().app) as running,
        running.client() as client,
        client.stream("GET", "/events") as answer,
    ):
        assert next(answer.iter_lines()) == "data: 1"
        running.server.leave()
        assert running.ended()
