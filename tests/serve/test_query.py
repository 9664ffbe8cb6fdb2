"""No query parameter is passed over in silence, but by what probes and browsers ask for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gritkit_serve.app import create_app
from gritkit_serve.service import Service
from tests.serve.serving import Running

IGNORING = ("/health", "/ready", "/metrics")


def operations() -> Iterator[tuple[str, str, list[str]]]:
    """(method, path, query parameters) of every documented route that has a say in them."""
    for path, item in create_app(Service("tiny")).openapi()["paths"].items():
        if path not in IGNORING:
            for method, operation in item.items():
                known = [one["name"] for one in operation.get("parameters", ()) if one["in"] == "query"]
                yield method.upper(), path.format(name="a", model="tiny"), known


@pytest.mark.parametrize(("method", "path", "known"), list(operations()))
def test_an_unknown_one_is_refused_by_name(server: Running, method: str, path: str, known: list[str]) -> None:
    with server.client() as client:
        answer = client.request(method, path, params={"streem": "true"}, json={} if method == "POST" else None)
    taken = ", ".join(map(repr, known)) or "none"
    assert answer.status_code == 400
    assert answer.json()["error"] == {
        "message": f"unknown query parameter 'streem': this route takes {taken}",
        "type": "invalid_request_error", "param": "streem", "code": None,
    }  # fmt: skip


def test_those_of_a_route_are_taken_there_alone(server: Running) -> None:
    with server.client() as client:
        assert client.get("/v1/kb/a/documents?limit=3&after=x").status_code == 404  # this server has no bases
        refused = client.get("/v1/kb/a/documents?limit=3&stream=true").json()["error"]
        first = client.get("/v1/models?é=1&" + "x" * 2000).json()["error"]
    assert refused["param"] == "stream"
    assert first["param"] == "é"


@pytest.mark.parametrize("path", [*IGNORING, "/", "/static/main.js", "/docs", "/openapi.json"])
def test_probes_and_pages_may_be_asked_with_any(server: Running, path: str) -> None:
    with server.client() as client:
        assert client.get(path, params={"time": "1"}).status_code == 200
