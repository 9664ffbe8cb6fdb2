from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI

from gritkit_serve import logs
from gritkit_serve.app import create_app
from gritkit_serve.service import CallDep, Service
from gritkit_serve.settings import Settings
from tests.serve.serving import serving

PROMPT = "a secret that somebody typed"


def with_routes(service: Service) -> FastAPI:
    router = APIRouter()

    @router.post("/things/{name}")
    async def things(name: str, body: dict[str, Any], call: CallDep) -> None:
        call.token()
        call.token()
        call.use(prompt=12, cached=5, completion=2)

    @router.post("/fail")
    async def fail(body: dict[str, Any]) -> None:
        try:
            raise ValueError(body["prompt"])
        except ValueError as error:
            raise RuntimeError(f"cannot do {body['prompt']}") from error

    app = create_app(service)
    app.include_router(router)
    return app


@pytest.fixture
def json_lines() -> Iterator[None]:
    """The loggers as ``gritkit serve`` sets them up, and as they were again afterwards."""
    before = [
        (log, list(log.handlers), log.level, log.propagate)
        for log in map(logging.getLogger, (None, "gritkit", "uvicorn"))
    ]
    yield
    logging.captureWarnings(False)
    for log, handlers, level, propagate in before:
        log.handlers, log.propagate = handlers, propagate
        log.setLevel(level)


def lines(capsys: pytest.CaptureFixture[str], event: str) -> list[dict[str, Any]]:
    """Those of one event; every line of the log is an object."""
    found = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    return [line for line in found if line["event"] == event]


def served(**settings: Any) -> Any:
    logs.configure()
    return serving(None, settings=Settings(**settings), app=with_routes)


@pytest.mark.usefixtures("json_lines")
def test_a_request_is_one_line_without_what_was_said(capsys: pytest.CaptureFixture[str]) -> None:
    with served() as running, running.client() as client:
        client.post(
            f"/things/{PROMPT}?q={PROMPT}",
            json={"prompt": PROMPT},
            headers={"x-request-id": "mine", "x-secret": PROMPT},
        )
        answer = client.get(f"/nothing/{PROMPT}")
    captured = capsys.readouterr().err
    assert PROMPT not in captured
    assert "nothing" not in captured
    thing, nothing = (json.loads(line) for line in captured.splitlines() if '"request"' in line)
    assert thing | {"time": 0, "ms": 0, "first_token_ms": 0} == {
        "time": 0, "level": "info", "event": "request", "id": "mine", "client": "127.0.0.1", "method": "POST",
        "route": "/things/{name}", "status": 200, "ms": 0, "first_token_ms": 0, "prompt_tokens": 12,
        "cached_tokens": 5, "completion_tokens": 2,
    }  # fmt: skip
    assert 0 < thing["first_token_ms"] <= thing["ms"]
    assert (nothing["route"], nothing["status"]) == ("unmatched", 404)
    assert nothing["id"] == answer.headers["x-request-id"]


@pytest.mark.usefixtures("json_lines")
def test_prompts_are_logged_where_the_operator_asks_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    with served(log_prompts=True) as running, running.client() as client:
        client.post("/things/x", json={"prompt": PROMPT})
        client.post("/fail", json={"prompt": PROMPT})
    captured = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    thing, failure, failed = (line for line in captured if line["event"] in ("request", "failure"))
    assert json.loads(thing["body"]) == {"prompt": PROMPT}
    assert failure["message"] == f"cannot do {PROMPT}"
    assert failed["status"] == 500


@pytest.mark.usefixtures("json_lines")
def test_a_failure_says_where_and_not_what(capsys: pytest.CaptureFixture[str]) -> None:
    with served() as running, running.client() as client:
        client.post("/fail", json={"prompt": PROMPT}, headers={"x-request-id": "a-b.c_1"})
    captured = capsys.readouterr().err
    assert PROMPT not in captured
    (failure,) = (json.loads(line) for line in captured.splitlines() if '"failure"' in line)
    assert (failure["level"], failure["id"], failure["error"]) == ("error", "a-b.c_1", "RuntimeError")
    assert failure["cause"] == {"error": "ValueError"}
    assert failure["at"][-1].endswith(" fail")
    assert "test_logs.py:" in failure["at"][-1]


@pytest.mark.usefixtures("json_lines")
@pytest.mark.parametrize("given", ["", "x" * 65, "two words", 'a"b', "a;b", "ü".encode(), "a{b}"])
def test_an_id_that_could_be_misread_is_replaced(capsys: pytest.CaptureFixture[str], given: str | bytes) -> None:
    with served() as running, running.client() as client:
        answer = client.get("/health", headers={b"x-request-id": given if isinstance(given, bytes) else given.encode()})
    used = answer.headers["x-request-id"]
    assert used.startswith("req-")
    assert [line["id"] for line in lines(capsys, "request")] == [used]


@pytest.mark.usefixtures("json_lines")
def test_the_web_servers_own_warnings_are_lines_too(capsys: pytest.CaptureFixture[str]) -> None:
    with served() as running:
        running.exchange(b"junk\r\n\r\n")
    (refused,) = lines(capsys, "refused")
    assert (refused["status"], refused["level"]) == (400, "info")


@pytest.mark.usefixtures("json_lines")
def test_exceptions_logged_anywhere_lose_their_messages(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    try:
        raise ValueError(PROMPT)
    except ValueError:
        logging.getLogger("gritkit.rag").exception("it broke")
    captured = capsys.readouterr().err
    assert PROMPT not in captured
    assert json.loads(captured)["error"] == "ValueError"


@pytest.mark.usefixtures("json_lines")
@pytest.mark.filterwarnings("default:it is old")
def test_what_other_libraries_have_to_say_is_a_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    logging.getLogger("asyncio").error("a task failed\nfuture: <Task exception=%r>", ValueError(PROMPT))
    logging.getLogger("httpx").info("a request")
    warnings.warn("it is old", UserWarning, stacklevel=1)
    captured = capsys.readouterr().err
    assert PROMPT not in captured
    failed, old = map(json.loads, captured.splitlines())
    assert (failed["event"], failed["level"]) == ("a task failed", "error")
    assert old["event"].endswith("UserWarning: it is old")


@pytest.mark.usefixtures("json_lines")
def test_that_no_file_can_be_opened_is_said_once_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()

    def say(seconds: float, what: str = "socket.accept() out of system resource") -> None:
        record = logging.makeLogRecord({"name": "asyncio", "levelno": logging.ERROR, "msg": what, "created": seconds})
        logging.getLogger("asyncio").handle(record)

    for seconds in (1000.0, 1000.1, 1059.9, 1060.0, 1060.1):
        say(seconds)
    closed = "Exception in callback BaseSelectorEventLoop._start_serving(<function ...>)\nhandle: ..."
    say(1060.2, closed)
    say(1060.3, closed)
    say(1060.4, "something else")
    said = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["time"][14:21] for line in said] == ["16:40.0", "17:40.0", "17:40.2", "17:40.4"]
    assert [line["event"] for line in said[2:]] == [closed.splitlines()[0], "something else"]


@pytest.mark.usefixtures("json_lines")
@pytest.mark.parametrize("to", [b"websocket", b"h2c"])
def test_asking_for_another_protocol_is_no_warning(capsys: pytest.CaptureFixture[str], to: bytes) -> None:
    with served() as running:
        answer = running.exchange(
            b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close, Upgrade\r\nUpgrade: " + to + b"\r\n\r\n"
        )
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert "warning" not in capsys.readouterr().err
