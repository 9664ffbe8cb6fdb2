from __future__ import annotations

import json
import sys
from typing import Any, Literal

import pytest
from fastapi import APIRouter, FastAPI
from pydantic import BaseModel, ConfigDict, Field

from gritkit.errors import (
    GenerationError,
    InputError,
    MissingExtraError,
    RecordError,
    StoreError,
    UnsupportedModelError,
)
from gritkit_serve.app import create_app
from gritkit_serve.engine import EngineFailed, NotServing, Overloaded
from gritkit_serve.errors import MAX_MESSAGE, ConflictError, HttpError, NotFoundError, ParameterError, event_of
from gritkit_serve.service import Service
from gritkit_serve.validation import SHOWN, explain
from tests.serve.serving import Running, serving

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

UNKNOWN = "this server does not know it, and ignores nothing silently"
SECRET = "what the user typed"


class Turn(BaseModel):
    model_config = ConfigDict(extra="forbid")
    role: Literal["user", "assistant"]
    content: str | list[str]


class Things(BaseModel):
    model_config = ConfigDict(extra="forbid")
    turns: list[Turn] = Field(min_length=1)
    n: int = Field(1, ge=1, le=8)


RAISED: dict[str, Exception] = {
    "input": InputError("n=0 must be at least 1"),
    "record": RecordError("line 1: no text"),
    "model": UnsupportedModelError("GPT2 cannot"),
    "parameter": ParameterError("n=9 must be at most 8", param="n"),
    "missing": NotFoundError("no model 'x'", param="model", code="model_not_found"),
    "conflict": ConflictError("there is one already", param="name"),
    "own": HttpError("no", status=418, headers={"X-Tea": "pot"}),
    "extra": MissingExtraError("lancedb", "rag"),
    "busy": Overloaded("9 generations are waiting", 7.2),
    "starting": NotServing("the server is starting"),
    "pass": EngineFailed("a forward pass failed: RuntimeError"),
    "answer": GenerationError("the answer cannot be continued: ValueError"),
    "store": StoreError(f"/srv/kb: {SECRET}"),
    "defect": ZeroDivisionError(SECRET),
    "group": ExceptionGroup("several", [InputError("only this")]),
    "long": InputError("x" * 5000 + "\nsecond line"),
    "half": InputError("a text with \ud800 in it"),
}  # fmt: skip


def with_failures(service: Service) -> FastAPI:
    router = APIRouter()

    @router.post("/things")
    def things(body: Things) -> None: ...

    @router.get("/raise/{what}")
    async def fail(what: str) -> None:
        raise RAISED[what]

    app = create_app(service)
    app.include_router(router)
    return app


@pytest.fixture(scope="module")
def failing() -> Any:
    with serving(None, app=with_failures) as running:
        yield running


@pytest.mark.parametrize(
    ("what", "status", "error"),
    [
        ("input", 400, {"message": "n=0 must be at least 1", "type": "invalid_request_error"}),
        ("record", 400, {"type": "invalid_request_error"}),
        ("model", 400, {"message": "GPT2 cannot"}),
        ("parameter", 400, {"param": "n", "message": "n=9 must be at most 8"}),
        ("missing", 404, {"type": "not_found_error", "param": "model", "code": "model_not_found"}),
        ("conflict", 409, {"type": "conflict_error", "param": "name"}),
        ("own", 418, {"type": "invalid_request_error"}),
        ("extra", 501, {"type": "not_supported_error"}),
        ("busy", 429, {"type": "rate_limit_error", "code": "overloaded"}),
        ("starting", 503, {"type": "unavailable_error", "code": "not_serving"}),
        ("pass", 500, {"message": "a forward pass failed: RuntimeError", "code": "engine_failed"}),
        ("answer", 500, {"message": "the answer cannot be continued: ValueError", "code": "generation_failed"}),
        ("group", 400, {"message": "only this"}),
    ],
)
def test_what_a_route_raises_decides_the_answer(
    failing: Running, what: str, status: int, error: dict[str, str]
) -> None:
    with failing.client() as client:
        answer = client.get(f"/raise/{what}")
    assert answer.status_code == status
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert error.items() <= body["error"].items()
    if status in (429, 503):
        assert int(answer.headers["retry-after"]) == {"busy": 7, "starting": 5}[what]
    if what == "own":
        assert answer.headers["x-tea"] == "pot"


@pytest.mark.parametrize("what", ["defect", "store"])
def test_a_defect_says_nothing_but_its_id(failing: Running, what: str, capfd: pytest.CaptureFixture[str]) -> None:
    with failing.client() as client:
        answer = client.get(f"/raise/{what}", headers={"x-request-id": "mine-1"})
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.json()["error"] == {
        "message": "internal error; the server's log has it under request id mine-1",
        "type": "internal_error", "param": None, "code": "internal_error",
    }  # fmt: skip
    assert SECRET not in capfd.readouterr().err


def test_messages_are_one_short_line_whatever_they_quote(failing: Running) -> None:
    with failing.client() as client:
        long, half = client.get("/raise/long"), client.get("/raise/half")
    message = long.json()["error"]["message"]
    assert len(message) == MAX_MESSAGE
    assert message.endswith("…")
    assert half.status_code == 400
    assert "\\ud800" in half.text


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ({"turns": [{"role": "user", "content": "a"}], "best_of": 3}, "unknown field 'best_of'", "best_of"),
        ({"turns": [{"role": "user", "content": "a", "name": "x"}]}, "unknown field 'turns[0].name'", "turns[0].name"),
        ({"turns": [{"role": "user", "content": "a"}, {"role": "robot", "content": "b"}]},
         "turns[1].role='robot' must be 'user' or 'assistant'", "turns[1].role"),
        ({"turns": [{"role": "user"}]}, "turns[0].content is missing", "turns[0].content"),
        ({"turns": [{"role": "user", "content": 3}]},
         "turns[0].content=3 must be a valid string or must be a valid list", "turns[0].content"),
        ({"turns": [{"role": "user", "content": ["a", 3]}]}, "turns[0].content[1]=3 must be a valid string",
         "turns[0].content[1]"),
        ({"turns": [{"role": "user", "content": "a"}], "n": 99}, "n=99 must be less than or equal to 8", "n"),
        ({"turns": [], "n": "many"}, "; n='many' must be a valid integer", "turns"),
        ({"n": "x" * 500, "turns": [{"role": "user", "content": "a"}]}, "…", "n"),
        ({}, "turns is missing", "turns"),
        ([], "the body=[0 items] must be", None),
    ],
)  # fmt: skip
def test_a_field_that_cannot_be_used_is_named_with_its_value(
    failing: Running, body: Any, message: str, param: str | None
) -> None:
    with failing.client() as client:
        answer = client.post("/things", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert message in error["message"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert len(error["message"]) < 300


def test_however_many_fields_are_wrong_few_are_looked_at(failing: Running) -> None:
    """Each of these bodies took minutes when every wrong field was compared with every other."""
    turns, fields = {"turns": [{}] * 20_000}, {f"{'a.' * 30}{n}": n for n in range(30_000)}
    with failing.client() as client:
        for body, first, more in ((turns, "turns[0].role", 995), (fields, "turns", 995)):
            error = client.post("/things", json=body).json()["error"]
            assert error["param"] == first
            assert error["message"].endswith(f"; and at least {more} more")
            assert error["message"].count("; ") == SHOWN


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/v1/chat/completions", {"messages": [{}] * 20_000}, "messages[0].role is missing; messages[0].content is"),
        ("/tokenize", {"messages": [{}] * 20_000}, "messages[0].role is missing; messages[0].content is"),
        ("/v1/rerank", {"query": "a", "documents": [{}] * 20_000}, 'documents[0]={0 fields} must be a text or {"text"'),
    ],
)
def test_of_a_long_list_the_first_bad_item_is_named_alone(failing: Running, path: str, body: Any, said: str) -> None:
    with failing.client() as client:
        answer = client.post(path, json=body)
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert message.startswith(said)
    assert "[1]" not in message


def test_names_of_fields_may_hold_dots() -> None:
    """What a field is called is no path: its 5 million dots are 5 million levels to nobody."""
    name = "." * 5_000_000
    findings = [{"type": "extra_forbidden", "loc": ("body", name)}, {"type": "missing", "loc": ("body", "a")}]
    assert explain(findings, {name: 1}) == (f"unknown field {name!r}: {UNKNOWN}; a is missing", name)


def test_no_such_route_and_no_such_method(failing: Running) -> None:
    with failing.client() as client:
        missing, method = client.get("/v2/things"), client.get("/things")
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found_error")
    assert "/openapi.json" in missing.json()["error"]["message"]
    assert (method.status_code, method.headers["allow"]) == (405, "POST")


def test_an_event_is_one_line_of_json() -> None:
    event = event_of(InputError("a\nb"), "id")
    assert "\n" not in event
    assert json.loads(event)["error"]["message"] == "a b"
