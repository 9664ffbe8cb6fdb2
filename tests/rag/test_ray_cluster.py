from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest

from gritkit.errors import InputError, StoreError
from gritkit.rag.ray_cluster import Pool, RayOptions, connected, pool_of

pytestmark = [
    # Ray leaves processes to the end of the interpreter, and tells of settings to come
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:.*Ray will no longer override accelerator:FutureWarning"),
]


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_that_is_started_here_listens_here_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="the package ray is not installed")
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    before = set(Path("/tmp").glob("gritkit-ray-*"))
    with connected(ray, None):
        processes = psutil.Process().children(recursive=True)
        listening = {
            connection.laddr.ip
            for process in [psutil.Process(), *processes]
            for connection in process.net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert len(set(Path("/tmp").glob("gritkit-ray-*")) - before) == 1
    assert len(processes) > 2
    assert {ip.removeprefix("::ffff:") for ip in listening} <= {"127.0.0.1", "::1"}
    assert not ray.is_initialized()
    assert set(Path("/tmp").glob("gritkit-ray-*")) == before
    assert "RAY_USAGE_STATS_ENABLED" not in os.environ


def test_an_address_where_nobody_is_is_said_at_once() -> None:
    ray = pytest.importorskip("ray", reason="the package ray is not installed")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # nobody listens, and nobody else can
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(StoreError, match=f"cannot use a Ray cluster at '{address}'"), connected(ray, address):
            pass
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"num_actors": 0}, "num_actors=0 must"),
        ({"batch_size": True}, "batch_size=True must"),
        ({"gpus_per_actor": -1.0}, "gpus_per_actor=-1.0 must"),
        ({"address": "ray://host:10001"}, "is neither host:port"),
        ({"address": "local"}, "is neither host:port"),
    ],
)
def test_options_that_cannot_be_are_refused(wrong: dict[str, Any], what: str) -> None:
    with pytest.raises(InputError, match=what):
        RayOptions(**wrong)


class Machines:
    """What a cluster says that it has."""

    def __init__(self, *resources: dict[str, float]) -> None:
        self._nodes = [{"Alive": bool(one), "Resources": one} for one in resources]

    def nodes(self) -> list[dict[str, Any]]:
        return self._nodes


@pytest.mark.parametrize(
    ("device", "options", "machines", "pool"),
    [
        (None, {}, [{"CPU": 8.0}, {"CPU": 4.0}, {}], Pool(2, 4, 0.0, "cpu")),
        (None, {"num_actors": 4}, [{"CPU": 8.0}, {"CPU": 8.0}], Pool(4, 4, 0.0, "cpu")),
        (None, {"num_actors": 3}, [{"CPU": 8.0}, {"CPU": 8.0}], Pool(3, 4, 0.0, "cpu")),
        (None, {}, [{"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 1.0}], Pool(5, 1, 1.0, "cuda")),
        ("cuda:1", {"gpus_per_actor": 0.5}, [{"CPU": 8.0, "GPU": 2.0}], Pool(4, 1, 0.5, "cuda")),
        ("cpu", {}, [{"CPU": 8.0, "GPU": 4.0}], Pool(1, 8, 0.0, "cpu")),
        ("mps", {}, [{"CPU": 8.0}], Pool(1, 8, 0.0, "mps")),
    ],
)
def test_actors_fill_the_machines(device: str | None, options: dict[str, Any], machines: Any, pool: Pool) -> None:
    assert pool_of(Machines(*machines), device, RayOptions(**options)) == pool


def test_more_actors_than_there_is_room_for_are_said(caplog: pytest.LogCaptureFixture) -> None:
    assert pool_of(Machines({"CPU": 2.0}), None, RayOptions(num_actors=5)).num_actors == 2
    assert "room for 2 actors: num_actors=5 is more" in caplog.text
    with pytest.raises(StoreError, match="has 2 GPUs"):
        pool_of(Machines({"CPU": 2.0, "GPU": 1.0}), None, RayOptions(gpus_per_actor=2))
