from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from fastapi import FastAPI, UploadFile
from fastapi.responses import StreamingResponse

from gritkit_serve import errors
from gritkit_serve.limits import BodyLimits
from gritkit_serve.observing import Ending, Observing
from gritkit_serve.service import CallDep, Service
from gritkit_serve.settings import Settings
from tests.serve.serving import PATIENCE_S, Running, rest, serving

SETTINGS = Settings(
    max_body_bytes=100_000, max_upload_bytes=200_000, max_buffered_bytes=250_000, body_seconds=1.0,
    min_body_rate=1 << 20, max_json_depth=8, max_json_containers=1000,
)  # fmt: skip


@dataclass
class Watched:
    """What happened inside of the routes."""

    began: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    bodies: list[Any] = field(default_factory=list)


def app_of(watched: Watched) -> Any:
    def make(service: Service) -> FastAPI:
        app = FastAPI()

        @app.post("/echo")
        async def echo(body: dict[str, Any]) -> int:
            watched.bodies.append(body)
            return len(body)

        @app.post("/files")
        async def files(files: list[UploadFile]) -> list[int]:
            return [len(await file.read()) for file in files]

        @app.post("/hang")
        @app.get("/hang")
        @app.post("/files/hang")
        async def hang() -> None:
            watched.began.set()
            try:
                await anyio.sleep_forever()
            finally:
                watched.cancelled.set()

        @app.post("/hold")
        async def hold(body: dict[str, Any]) -> None:
            watched.began.set()
            await anyio.to_thread.run_sync(watched.release.wait, PATIENCE_S)

        @app.post("/stream")
        async def stream(body: dict[str, Any], call: CallDep) -> StreamingResponse:
            async def endless() -> AsyncIterator[bytes]:
                try:
                    while True:
                        yield b"data: {}\n\n"
                        watched.began.set()
                        await anyio.sleep(0.001)
                finally:
                    watched.cancelled.set()

            return StreamingResponse(endless(), media_type="text/event-stream")

        errors.install(app)
        app.add_middleware(BodyLimits, settings=service.settings, takes_files=lambda path: path.startswith("/files"))
        app.add_middleware(Ending, log_prompts=False)
        app.add_middleware(Observing, metrics=service.metrics)
        return app

    return make


@pytest.fixture
def watched() -> Watched:
    return Watched()


@pytest.fixture
def limited(watched: Watched) -> Iterator[Running]:
    with serving(None, settings=SETTINGS, app=app_of(watched)) as running:
        yield running


def head(path: str, *lines: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


def error_in(answer: bytes) -> dict[str, Any]:
    """Of the last answer on a connection."""
    body: dict[str, Any] = json.loads(answer[answer.rindex(b'{"error"') :])["error"]
    return body


JSON_TYPE = "Content-Type: application/json"


# -- size --------------------------------------------------------------------------------------------------------------


def test_a_body_within_the_limits_arrives_whole(limited: Running, watched: Watched) -> None:
    body = {"text": "x" * 90_000, "deep": [[[[1.5]]]], "🦊": '\\"'}
    with limited.client() as client:
        answer = client.post("/echo", json=body)
        chunked = client.post(
            "/echo", content=iter([b'{"a"', b": 1", b"}"]), headers={"content-type": "application/json; charset=utf-8"}
        )
    assert (answer.status_code, answer.json()) == (200, 3)
    assert (chunked.status_code, chunked.json()) == (200, 1)
    assert watched.bodies == [body, {"a": 1}]


def test_a_body_that_says_it_is_too_large_is_not_read(limited: Running, watched: Watched) -> None:
    answer = limited.exchange(head("/echo", JSON_TYPE, "Content-Length: 100001"))
    assert answer.startswith(b"HTTP/1.1 413")
    assert error_in(answer)["code"] == "body_too_large"


def test_a_body_that_does_not_say_how_large_it_is_is_counted(limited: Running) -> None:
    with limited.client() as client:
        answer = client.post(
            "/echo", content=(b" " * 1000 for _ in range(10_000)), headers={"content-type": "application/json"}
        )
    assert answer.status_code == 413


def test_a_client_that_sends_all_of_a_large_body_gets_its_answer_and_keeps_the_connection(limited: Running) -> None:
    with limited.client() as client:
        assert client.post("/echo", json={"a": "x" * 10_000_000}).status_code == 413
        assert client.post("/echo", json={"a": 1}).status_code == 200


def test_a_length_that_lies_harms_nobody_else(limited: Running) -> None:
    short = limited.exchange(head("/echo", JSON_TYPE, "Content-Length: 50"), b'{"a": 1}')
    assert short.startswith(b"HTTP/1.1 408")
    long = limited.exchange(head("/echo", JSON_TYPE, "Content-Length: 8"), b'{"a": 1}{"and": "more"}')
    assert b"HTTP/1.1 400" in long  # never taken for a request of somebody else
    assert long.endswith(b"}")
    both = limited.exchange(head("/echo", JSON_TYPE, "Content-Length: 8", "Transfer-Encoding: chunked"), b"0\r\n\r\n")
    assert both.startswith(b"HTTP/1.1 400")
    negative = limited.exchange(head("/echo", JSON_TYPE, "Content-Length: -1"))
    assert negative.startswith(b"HTTP/1.1 400")


def test_all_bodies_together_are_bounded(limited: Running, watched: Watched) -> None:
    large = b'{"a": "' + b"x" * 90_000 + b'"}'
    held = [limited.connect() for _ in range(2)]
    try:
        for connection in held:
            watched.began.clear()
            connection.sendall(head("/hold", JSON_TYPE, f"Content-Length: {len(large)}") + large)
            assert watched.began.wait(PATIENCE_S)
        with limited.client() as client:
            refused = client.post("/echo", content=large, headers={"content-type": "application/json"})
            small = client.post("/echo", json={"a": 1})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_bytes")
        assert refused.headers["retry-after"] == "1"
        assert small.status_code == 200
        watched.release.set()
        for connection in held:
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        with limited.client() as client:
            assert client.post("/echo", content=large, headers={"content-type": "application/json"}).status_code == 200
    finally:
        watched.release.set()
        for connection in held:
            connection.close()


# -- form --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({"content-type": "text/plain"}, "content-type 'text/plain' is not taken: send application/json"),
        ({"content-type": "application/x-www-form-urlencoded"}, "is not taken"),
        ({"content-type": "multipart/form-data; boundary=x"}, "is not taken"),
        ({"content-type": ""}, "content-type '' is not taken"),
        ({"content-type": "application/json", "content-encoding": "gzip"}, "content-encoding 'gzip' is not taken"),
    ],
)
def test_other_forms_of_bodies_are_refused(limited: Running, headers: dict[str, str], says: str) -> None:
    with limited.client() as client:
        answer = client.post("/echo", content=b'{"a": 1}', headers=headers)
    assert answer.status_code == 415
    assert says in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[" * 50_000, b'{"a": 1, "a": 2}', b'{"a": NaN}', b"[" + b"[]," * 9000 + b"1]", b"\xff" * 70_000],
)
def test_json_that_should_not_be_parsed_is_refused(limited: Running, body: bytes) -> None:
    with limited.client() as client:
        answer = client.post("/echo", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


def test_no_body_where_one_is_needed(limited: Running) -> None:
    with limited.client() as client:
        answer = client.post("/echo")
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "the body is missing")


# -- files -------------------------------------------------------------------------------------------------------------


def test_files_pass_where_they_are_taken_and_are_counted_too(limited: Running) -> None:
    with limited.client() as client:
        taken = client.post("/files", files=[("files", b"x" * 90_000), ("files", b"y" * 90_000)])
        refused = client.post("/files", files=[("files", b"x" * 300_000)])
        chunked = client.post(
            "/files",
            content=(b"--b\r\nContent-Disposition: form-data; name=files; filename=f\r\n\r\n", *[b"x" * 1000] * 300),
            headers={"content-type": "multipart/form-data; boundary=b"},
        )
        broken = client.post("/files", content=b"junk", headers={"content-type": "multipart/form-data; boundary=b"})
    assert (taken.status_code, taken.json()) == (200, [90_000, 90_000])
    assert (refused.status_code, chunked.status_code) == (413, 413)
    assert broken.status_code == 400
    assert {"message", "type", "param", "code"} == set(broken.json()["error"])


def test_files_that_trickle_end_in_time(limited: Running) -> None:
    kind = "Content-Type: multipart/form-data; boundary=b"
    answer = limited.exchange(head("/files", kind, "Content-Length: 1000"), b"--b\r\n")
    assert answer.startswith(b"HTTP/1.1 408")


# -- time and leaving --------------------------------------------------------------------------------------------------


def test_a_body_that_trickles_ends_in_time_and_closes_the_connection(limited: Running) -> None:
    answer = limited.exchange(head("/echo", JSON_TYPE, "Content-Length: 9"), b"{")
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"connection: close" in answer.lower()
    assert error_in(answer)["code"] == "slow_body"


def test_a_client_that_leaves_before_its_body_is_there_is_no_failure(
    limited: Running, capfd: pytest.CaptureFixture[str]
) -> None:
    with limited.connect() as connection:
        connection.sendall(head("/echo", JSON_TYPE, "Content-Length: 9") + b"{")
    with limited.client() as client:
        assert client.post("/echo", json={}).status_code == 200
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("path", ["/hang", "/files/hang", "/stream"])
def test_when_the_client_leaves_the_route_is_cancelled(limited: Running, watched: Watched, path: str) -> None:
    with limited.connect() as connection:
        connection.sendall(head(path, JSON_TYPE, "Content-Length: 2") + b"{}")
        assert watched.began.wait(PATIENCE_S)
        assert not watched.cancelled.is_set()
    assert watched.cancelled.wait(PATIENCE_S)


def test_a_client_without_a_body_that_leaves_cancels_too(limited: Running, watched: Watched) -> None:
    with limited.connect() as connection:
        connection.sendall(b"GET /hang HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert watched.began.wait(PATIENCE_S)
    assert watched.cancelled.wait(PATIENCE_S)


def test_a_client_that_stays_is_not_cancelled(limited: Running, watched: Watched) -> None:
    with limited.client() as client, client.stream("POST", "/stream", json={}) as answer:
        for _, _line in zip(range(20), answer.iter_lines(), strict=False):
            assert not watched.cancelled.is_set()
    assert watched.cancelled.wait(PATIENCE_S)


def test_requests_one_after_the_other_on_one_connection(limited: Running) -> None:
    request = head("/echo", JSON_TYPE, "Content-Length: 2") + b"{}"
    with limited.connect() as connection:
        connection.sendall(request * 5 + head("/echo", JSON_TYPE, "Content-Length: 2", "Connection: close") + b"{}")
        assert rest(connection).count(b"HTTP/1.1 200") == 6
