from __future__ import annotations

from tests.serve.serving import Running


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
