"""The real ``gritkit serve``, killed with -9 while clients add, delete and make: what was acknowledged is there."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("lancedb")

from gritkit.rag.base import KnowledgeBase
from tests.models import TEXTS
from tests.serve.test_command import PATIENCE_S, Process, Start, model_folder, start  # noqa: F401 - fixtures

LIVES, CLIENTS, AT_ONCE = 3, 3, 5

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="kill -9")]


@dataclass
class Acknowledged:
    """What clients were told, by all lives so far; sure but for the ids in ``open``, whose answer never came."""

    documents: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    open: set[str] = field(default_factory=set)
    count: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def settle(self, ids: set[str], *, there: bool) -> None:
        with self.changed:
            self.open -= ids
            self.documents = self.documents | ids if there else self.documents - ids
            self.deleted = self.deleted - ids if there else self.deleted | ids
            self.count += 1
            self.changed.notify_all()

    def wait_for(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.count >= count, PATIENCE_S)


def client_of(server: Process, number: int, life: int, told: Acknowledged) -> Callable[[], None]:
    """Adds documents, and deletes some of them again, until its server is gone."""

    def work() -> None:
        path = "/v1/kb/a/documents"
        with server.client() as client:
            for turn in range(10_000):
                ids = {f"{life}-{number}-{turn}-{n}" for n in range(AT_ONCE)}
                documents = [{"id": id, "text": f"{TEXTS[turn % 4]} {id}"} for id in sorted(ids)]
                some = {id for id in ids if id.endswith("-0")}
                with told.changed:
                    told.open |= ids
                try:
                    added = client.post(path, json={"documents": documents})
                    assert added.json()["added"] == AT_ONCE, added.text
                    told.settle(ids, there=True)
                    if turn % 2:
                        with told.changed:
                            told.open |= some
                        assert client.request("DELETE", path, json={"ids": sorted(some)}).json() == {"deleted": 1}
                        told.settle(some, there=False)
                except httpx.TransportError:
                    return

    return work


def listed(client: httpx.Client, name: str) -> set[str]:
    found: set[str] = set()
    after: dict[str, str] = {}
    while True:
        page = client.get(f"/v1/kb/{name}/documents", params={"limit": 100, **after}).json()
        found |= {one["id"] for one in page["data"]}
        if not page["has_more"]:
            return found
        after = {"after": page["data"][-1]["id"]}


def check(server: Process, told: Acknowledged) -> None:
    """Everything is as clients were told, and usable."""
    with server.client() as client:
        there = listed(client, "a")
        assert told.documents - told.open <= there
        assert there & (told.deleted - told.open) == set()
        assert there <= told.documents | told.open
        for id in random.Random(len(there)).sample(sorted(told.documents - told.open), 3):
            body = {"query": id, "by": "text", "top_k": 100}
            assert id in {hit["id"] for hit in client.post("/v1/kb/a/search", json=body).json()["data"]}
        answer = client.post("/v1/kb/a/ask", json={"question": "what is there?", "max_tokens": 2, "reuse": "cached"})
        assert (answer.status_code, answer.json()["recomputed"]) == (200, 0)
        told.documents, told.deleted, told.open = there, told.deleted - there, set()


def test_what_was_acknowledged_outlives_every_kill(start: Start, tmp_path: Path) -> None:  # noqa: F811
    kbs, told, rng = tmp_path / "kbs", Acknowledged(), random.Random(0)
    for life in range(LIVES):
        server = start("--kb", str(kbs))
        with server.client() as client:
            if life == 0:
                assert client.post("/v1/kb", json={"name": "a"}).status_code == 201
            else:
                check(server, told)
                assert [base["name"] for base in client.get("/v1/kb").json()["data"]] == ["a", f"made-{life - 1}"]
                assert client.delete(f"/v1/kb/made-{life - 1}").status_code == 200
            assert client.post("/v1/kb", json={"name": f"made-{life}"}).status_code == 201
        threads = [threading.Thread(target=client_of(server, number, life, told)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        told.wait_for(told.count + rng.randint(6, 18))
        server.process.kill()
        assert server.end() == -9
        for thread in threads:
            thread.join()
    check(start("--kb", str(kbs)), told)
    with KnowledgeBase.open(kbs / "a") as base:
        report = base.verify()
    assert (report.damaged, report.missing) == ([], 0)


def test_a_deletion_that_is_killed_leaves_nothing_behind(start: Start, tmp_path: Path) -> None:  # noqa: F811
    kbs, documents = tmp_path / "kbs", [{"id": str(n), "text": f"text {n}"} for n in range(200)]
    server = start("--kb", str(kbs))
    with server.client() as client:
        client.post("/v1/kb", json={"name": "a"})
        assert client.post("/v1/kb/a/documents", json={"documents": documents}).json()["added"] == len(documents)
    thread = threading.Thread(target=delete, args=(server,))
    thread.start()
    while (kbs / "a").exists():  # gone by one rename, and then file by file
        assert thread.is_alive()
        thread.join(0.001)
    server.process.kill()
    server.end()
    thread.join()
    with start("--kb", str(kbs)).client() as client:
        assert client.get("/v1/kb").json()["data"] == []
        assert client.post("/v1/kb", json={"name": "a"}).status_code == 201
        assert client.get("/v1/kb/a").json()["documents"] == 0
    assert [entry.name for entry in kbs.iterdir()] == ["a"]


def delete(server: Process) -> None:
    with server.client() as client, contextlib.suppress(httpx.TransportError):
        client.delete("/v1/kb/a")
