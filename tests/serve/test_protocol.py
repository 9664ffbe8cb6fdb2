from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from gritkit_serve.app import create_app
from gritkit_serve.service import Service
from gritkit_serve.settings import Settings
from tests.serve.serving import PATIENCE_S, Running, rest, serving

SETTINGS = Settings(max_header_bytes=4096, header_seconds=0.3, body_seconds=0.3, stalled_seconds=0.3, drain_seconds=2)
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
CLOSE = b"Connection: close\r\n\r\n"


class Floods:
    """A route that writes without end, and tells when it was cancelled."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.ended = threading.Event()

    def app(self, service: Service) -> FastAPI:
        app = create_app(service)

        @app.get("/flood")
        async def flood() -> StreamingResponse:
            async def pieces() -> AsyncIterator[bytes]:
                try:
                    while True:
                        yield b"x" * 65536
                        self.began.set()
                        await anyio.sleep(0)  # what waits for nothing lets nothing else run
                finally:
                    self.ended.set()

            return StreamingResponse(pieces())

        return app


@pytest.fixture(scope="module")
def floods() -> Floods:
    return Floods()


@pytest.fixture(scope="module")
def wire(floods: Floods) -> Iterator[Running]:
    with serving(None, settings=SETTINGS, app=floods.app) as running:
        yield running


def refusal(answer: bytes) -> tuple[int, str | None]:
    """(status, code) of an answer in the shape of all errors, after which the connection is closed."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    assert b"content-type: application/json" in head.lower()
    error: dict[str, Any] = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return int(head.split()[1]), error["code"]


def asked(connection: socket.socket) -> bool:
    """Whether a question on an open connection is answered."""
    connection.sendall(GET + b"\r\n")
    answer = b""
    while not answer.endswith(b"}"):
        answer += connection.recv(4096)
    return answer.startswith(b"HTTP/1.1 200")


def test_headers_within_the_limit_pass(wire: Running) -> None:
    assert wire.exchange(GET + b"X-Long: " + b"x" * 3500 + b"\r\n" + CLOSE).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "pieces",
    [
        (GET + b"X-Long: " + b"x" * 5000 + b"\r\n" + CLOSE,),  # at once
        (GET + b"X-Long: ", *[b"x" * 1000] * 8),  # a value that never ends
        (GET, b"x" * 3000, b"x" * 3000),  # a name that never ends
        (GET, *[b"X-%d: y\r\n" % number for number in range(500)]),  # headers without end
        (b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\n" + CLOSE,),  # a path
        (b"GET /", *[b"x" * 1000] * 8),  # a path that never ends
    ],
)
def test_headers_above_the_limit_are_refused(wire: Running, pieces: tuple[bytes, ...]) -> None:
    answer = b""
    with wire.connect() as connection:
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                connection.sendall(piece)
        answer = rest(connection)
    assert answer == b"" or refusal(answer) == (431, "headers_too_large")  # empty where the reset overtook it


def test_the_refusal_of_large_headers_is_read_by_one_who_waits(wire: Running) -> None:
    assert refusal(wire.exchange(GET + b"X-Long: " + b"x" * 5000)) == (431, "headers_too_large")


def test_trailers_are_bounded_as_well(wire: Running) -> None:
    request = (
        b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-Trailer: "
    )
    with wire.connect() as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(request)
            for _ in range(4000):
                connection.sendall(b"x" * 1000)
        rest(connection)  # returns, as the server has closed it


@pytest.mark.parametrize("start", [b"GET /hea", GET, GET + b"X-Slow: 1"])
def test_headers_that_trickle_end_in_time(wire: Running, start: bytes) -> None:
    assert refusal(wire.exchange(start)) == (408, "slow_headers")


def test_a_silent_connection_is_closed(wire: Running) -> None:
    assert wire.exchange() == b""


def test_blank_lines_are_no_life(wire: Running) -> None:
    assert wire.exchange(b"\r\n" * 100) == b""
    with wire.connect() as connection:
        assert asked(connection)
        connection.sendall(b"\r\n" * 100)
        assert rest(connection) == b""


def test_an_idle_connection_is_closed_after_a_while() -> None:
    with serving(None, settings=Settings(keep_alive_seconds=1)) as running:
        assert running.exchange(GET + b"\r\n").startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "junk",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET / HTTP/9.9\r\n\r\n",
        b"NONSENSE / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nBad Header: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n",
        b"POST /v1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /v1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(wire: Running, junk: bytes) -> None:
    status, _ = refusal(wire.exchange(junk))
    assert 400 <= status < 500


def test_one_connection_too_many_is_refused_and_the_others_stay() -> None:
    with serving(None, settings=Settings(max_connections=3)) as running, contextlib.ExitStack() as stack:
        kept = [stack.enter_context(running.connect()) for _ in range(3)]
        assert all(asked(connection) for connection in kept)  # they count once they are accepted, which this proves
        assert refusal(running.exchange()) == (503, "too_many_connections")
        assert asked(kept[0])
        kept.pop().close()
        assert asked(kept[1])


def test_a_reader_that_stalls_is_disconnected(wire: Running, floods: Floods) -> None:
    with wire.connect() as connection:
        connection.sendall(b"GET /flood HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert floods.began.wait(PATIENCE_S)
        assert floods.ended.wait(PATIENCE_S)


def test_a_body_that_goes_on_after_the_answer_is_cut_off(wire: Running) -> None:
    with wire.connect() as connection:
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000000\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 4")
        cut_off, until = False, time.monotonic() + PATIENCE_S
        while not cut_off:
            assert time.monotonic() < until
            try:
                connection.sendall(b"x" * 65536)
            except ConnectionError:
                cut_off = True


def test_junk_in_the_middle_of_an_answer_does_not_become_part_of_it(wire: Running, floods: Floods) -> None:
    floods.ended.clear()
    with wire.connect() as connection:
        connection.sendall(b"GET /flood HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connection.recv(65536)
        connection.sendall(b"\x00\x00\x00\r\n\r\n")
        assert b"HTTP/1.1 400" not in rest(connection)
    assert floods.ended.wait(PATIENCE_S)
