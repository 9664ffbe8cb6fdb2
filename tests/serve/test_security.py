from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI

from gritkit_serve.access import salt_of
from gritkit_serve.app import create_app
from gritkit_serve.security import Keys
from gritkit_serve.service import CallDep, Service
from gritkit_serve.settings import Settings
from tests.serve.serving import Running, serving

KEY, OTHER = "key-of-the-first-tenant", "key-of-the-second-tenant"
PAGE = "https://app.example.org"


def with_salt(service: Service) -> FastAPI:
    """A route that tells whose caches it would use, for any method."""
    router = APIRouter()

    @router.api_route("/salt", methods=["GET", "POST", "DELETE"])
    async def salt(call: CallDep) -> str:
        return call.salt

    app = create_app(service)
    app.include_router(router)
    return app


@pytest.fixture(scope="module")
def keyed() -> Iterator[Running]:
    with serving(None, settings=Settings(api_keys=(KEY, OTHER)), app=with_salt) as running:
        yield running


@pytest.fixture(scope="module")
def local() -> Iterator[Running]:
    with serving(None, settings=Settings(allow_origins=(PAGE,)), app=with_salt) as running:
        yield running


# -- with keys ---------------------------------------------------------------------------------------------------------


def assert_refused(answer: httpx.Response) -> None:
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["type"] == "authentication_error"
    assert KEY not in answer.text


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": f"Basic {KEY}"},
        {"authorization": KEY},
        {"authorization": f"Bearer {KEY}x"},
        {"authorization": f"Bearer {KEY[:-1]}"},
        {"authorization": f"Bearer {KEY.upper()}"},
        {"authorization": b"Bearer \xff\xfe"},
        {"x-api-key": "wrong"},
        {"x-api-key": KEY, "authorization": "Bearer wrong"},
        {"host": "localhost"},
    ],
)
def test_without_its_key_nobody_is_answered(keyed: Running, headers: Any) -> None:
    with keyed.client() as client:
        assert_refused(client.get("/salt", headers=headers))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/salt"), ("DELETE", "/salt"), ("OPTIONS", "/salt"), ("GET", "/metrics"), ("GET", "/docs"),
        ("GET", "/openapi.json"), ("GET", "/v1/models"), ("GET", "/no/such/route"), ("POST", "/health"), ("POST", "/"),
        ("GET", "/health/"), ("POST", "/v1/embeddings"), ("POST", "/v1/kb/x/documents"), ("GET", "/%2e/health"),
        ("GET", "/static/../salt"),
    ],
)  # fmt: skip
def test_without_a_key_no_route_answers(keyed: Running, method: str, path: str) -> None:
    with keyed.client() as client:
        assert_refused(client.request(method, path))


@pytest.mark.parametrize(
    "path", ["//health/../salt", "/salt//health", "/salt?/health", "/salt#/health", "/health%2F..%2Fsalt"]
)
def test_no_spelling_of_a_path_passes_for_a_public_one(keyed: Running, path: str) -> None:
    answer = keyed.exchange(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 401")


def test_whether_it_lives_and_the_page_need_no_key(keyed: Running) -> None:
    with keyed.client() as client:
        assert client.get("/health").status_code == 200
        assert client.get("/ready").status_code == 503
        assert client.get("/").status_code == 200
        assert client.get("/static/%2e%2e/salt").status_code == 404  # a name that the page does not have


def test_each_key_opens_and_has_caches_of_its_own(keyed: Running) -> None:
    with keyed.client() as client:
        first = client.get("/salt", headers={"authorization": f"Bearer {KEY}"})
        again = client.post("/salt", headers={"x-api-key": KEY})
        lower = client.get("/salt", headers={"authorization": f"bearer {KEY}"})
        second = client.get("/salt", headers={"authorization": f"Bearer {OTHER}"})
    assert first.json() == again.json() == lower.json() == salt_of(KEY)
    assert second.json() == salt_of(OTHER) != salt_of(KEY)


def test_with_a_key_any_host_and_origin_will_do(keyed: Running) -> None:
    headers = {"authorization": f"Bearer {KEY}", "host": "gpu.example.org", "origin": "https://evil.example"}
    with keyed.client() as client:
        answer = client.get("/salt", headers=headers)
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers


def test_a_salt_says_nothing_of_its_key() -> None:
    assert Keys([KEY]).salt_of(KEY) == salt_of(KEY)
    assert Keys([KEY]).salt_of(OTHER) is None
    assert len(salt_of(KEY)) == 32
    assert KEY not in salt_of(KEY)


# -- without -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", "[::2]"],
)
def test_a_name_that_was_made_to_point_here_is_refused(local: Running, host: str) -> None:
    with local.client() as client:
        for path in ("/salt", "/health", "/"):
            answer = client.get(path, headers={"host": host})
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "foreign_host")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:80", "127.0.0.1", "127.9.9.9:1", "[::1]:8000", "app.localhost"]
)
def test_names_of_this_machine_are_answered(local: Running, host: str) -> None:
    with local.client() as client:
        answer = client.get("/salt", headers={"host": host})
    assert (answer.status_code, answer.json()) == (200, "")


def test_two_hosts_are_both_looked_at(local: Running) -> None:
    answer = local.exchange(b"GET /salt HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
    assert answer.startswith((b"HTTP/1.1 403", b"HTTP/1.1 400"))


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost.evil.example", "file://", "x", "http://["]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_page_from_elsewhere_cannot_drive_the_server(local: Running, method: str, origin: str) -> None:
    with local.client() as client:
        answer = client.request(method, "/salt", headers={"origin": origin})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "foreign_origin")


def test_pages_of_this_machine_and_allowed_ones_can(local: Running) -> None:
    with local.client() as client:
        own = client.get("/salt", headers={"origin": "http://localhost:3000"})
        allowed = client.get("/salt", headers={"origin": PAGE})
        preflight = client.options(
            "/salt",
            headers={
                "origin": PAGE, "access-control-request-method": "POST",
                "access-control-request-headers": "authorization,content-type",
            },
        )  # fmt: skip
    assert own.status_code == 200
    assert "access-control-allow-origin" not in own.headers  # may ask, but a browser will not show it the answer
    assert allowed.headers["access-control-allow-origin"] == PAGE
    assert "access-control-allow-credentials" not in allowed.headers
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, PAGE)


def preflight(server: Running, origin: str, **asked: str) -> httpx.Response:
    """What a browser asks before it sends a page's request."""
    headers = {"origin": origin, **{f"access-control-request-{name}": value for name, value in asked.items()}}
    with server.client() as client:
        return client.options("/salt", headers=headers)


def test_an_allowed_page_may_send_any_header(local: Running) -> None:
    sent = "authorization,content-type,x-api-key,x-stainless-lang,x-stainless-os,x-stainless-retry-count"
    answer = preflight(local, PAGE, method="POST", headers=sent)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)
    assert answer.headers["access-control-allow-headers"] == sent  # spelled out: * would not cover Authorization
    assert "access-control-allow-credentials" not in answer.headers


def test_a_page_from_elsewhere_may_send_none(local: Running) -> None:
    answer = preflight(local, "https://evil.example", method="POST", headers="authorization")
    assert answer.status_code == 400
    assert "access-control-allow-origin" not in answer.headers


# -- what pages can read -----------------------------------------------------------------------------------------------


def with_defect(service: Service) -> FastAPI:
    app = with_salt(service)

    @app.get("/defect")
    async def defect() -> None:
        raise ZeroDivisionError

    return app


@pytest.fixture(scope="module")
def allowed() -> Iterator[Running]:
    settings = Settings(api_keys=(KEY,), allow_origins=(PAGE,), max_body_bytes=100)
    with serving(None, settings=settings, app=with_defect) as running:
        yield running


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("status", "method", "path", "given"),
    [
        (401, "GET", "/salt", {"headers": {"authorization": "Bearer wrong"}}),
        (404, "GET", "/nothing", {}),
        (413, "POST", "/salt", {"json": "x" * 200}),
        (415, "POST", "/salt", {"content": b"x"}),
        (400, "POST", "/salt", {"content": b"{", "headers": JSON}),
        (500, "GET", "/defect", {}),
    ],
)
def test_an_allowed_page_can_read_why_it_is_refused(
    allowed: Running, status: int, method: str, path: str, given: Any
) -> None:
    headers = {"authorization": f"Bearer {KEY}", "origin": PAGE, **given.get("headers", {})}
    with allowed.client() as client:
        answer = client.request(method, path, **{**given, "headers": headers})
    assert answer.status_code == status
    assert_readable(answer)


@pytest.mark.parametrize(("status", "gate"), [(503, {"closed": True}), (429, {"inside": 1 << 20})])
def test_an_allowed_page_can_read_that_it_is_to_wait(
    allowed: Running, status: int, gate: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in gate.items():
        monkeypatch.setattr(allowed.service.gate, name, value)
    with allowed.client() as client:
        answer = client.get("/salt", headers={"authorization": f"Bearer {KEY}", "origin": PAGE})
    assert (answer.status_code, "retry-after" in answer.headers) == (status, True)
    assert_readable(answer)


def assert_readable(answer: httpx.Response) -> None:
    assert set(answer.json()) == {"error"}
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "Retry-After" in answer.headers["access-control-expose-headers"]
    assert answer.headers["x-request-id"]
