"""``gritkit serve --engine ray``: two real replicas, one of which is killed under load."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("lancedb")

from gritkit.errors import MissingExtraError
from gritkit_serve.ray_replica import Plan
from gritkit_serve.ray_serve import RayService
from gritkit_serve.settings import Settings
from tests.cli.conftest import environment, gritkit
from tests.models import TEXTS, grit_model

START_S = 600.0
"""Ray starts five processes of its own, and each of them is a Python that imports much."""
PATIENCE_S = 300.0
REPLICAS = ("replica-0", "replica-1")
DOCUMENTS = [{"id": f"d{n:02}", "text": f"{text} {n}"} for n, text in enumerate(TEXTS * 6)]
KEY = "a key of the tests".replace(" ", "-")


@dataclass
class Served:
    """The server's process."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def client(self) -> httpx.Client:
        return httpx.Client(
            base_url=self.url, trust_env=False, timeout=PATIENCE_S, headers={"authorization": f"Bearer {KEY}"}
        )

    def figures(self, client: httpx.Client, name: str, **labels: str) -> dict[str, float]:
        """By replica."""
        found: dict[str, float] = {}
        for line in client.get("/metrics").text.splitlines():
            match = re.fullmatch(rf"{name}{{(.*)}} (\S+)", line)
            given = dict(re.findall(r'(\w+)="([^"]*)"', match[1])) if match else {}
            if match and labels.items() <= given.items():
                found[given["replica"]] = found.get(given["replica"], 0.0) + float(match[2])
        return found

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [event for event in map(json.loads, lines) if event["event"] == name]

    def pid_of(self, replica: str) -> int:
        """As its last notice has it."""
        found = [event["pid"] for event in self.events("replica") if event["replica"] == replica]
        return int(found[-1])


@contextlib.contextmanager
def starting(folder: Path, model: str, *, replicas: int) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """The server's process, and the file of its log."""
    pytest.importorskip("ray.serve", reason="the package ray[serve] is not installed")
    command = [sys.executable, "-m", "gritkit", "serve", model, "--port", "0", "--kb", "kbs"]
    log = folder / "log"
    with log.open("wb") as opened:
        process = subprocess.Popen(
            [*command, "--engine", "ray", "--replicas", str(replicas)],
            stdout=subprocess.PIPE, stderr=opened, cwd=folder, env=environment(GRITKIT_API_KEY=KEY),
        )  # fmt: skip
        assert process.stdout is not None
        with process.stdout:
            try:
                yield process, log
            finally:
                process.kill()
                process.wait()


def ready(process: subprocess.Popen[bytes], log: Path) -> Served:
    """When it says so."""
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], START_S)
    line = process.stdout.readline().decode() if readable else ""
    url = re.search(r"tiny-model is ready at (http://127\.0\.0\.1:\d+) ", line)
    assert url is not None, line + log.read_text()
    return Served(process, url[1], log)


def save_model(folder: Path) -> None:
    grit_model("qwen3", prompt_format="grit").save_pretrained(folder / "tiny-model")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("ray-serve")
    save_model(folder)
    with starting(folder, "tiny-model", replicas=2) as (process, log):
        yield ready(process, log)


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client


def asked(text: str, **options: Any) -> dict[str, Any]:
    return {"question": text, "top_k": 1, "max_tokens": 4, "reuse": "cached", **options}


@pytest.mark.ray
@pytest.mark.slow
def test_nothing_listens_beyond_this_machine_or_answers_without_the_token(served: Served) -> None:
    processes = psutil.Process(served.process.pid).children(recursive=True)
    listening = {
        (connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port)
        for process in [psutil.Process(served.process.pid), *processes]
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert len(listening) > 5
    assert {ip for ip, _ in listening} == {"127.0.0.1"}
    answers = Counter[str]()
    for _, port in listening:
        try:
            job = {"entrypoint": "true"}
            status = httpx.post(
                f"http://127.0.0.1:{port}/api/job_agent/jobs/", json=job, trust_env=False, timeout=10
            ).status_code  # fmt: skip
        except httpx.HTTPError:  # a port that does not speak HTTP/1.1
            continue
        answers[str(status)] += 1
    assert answers["401"] >= 2  # the server itself, and Ray's agent that runs jobs for whoever may ask
    assert not any(status.startswith("2") for status in answers)
    environ = [process.environ() for process in processes if "raylet" in process.name()]
    assert len({one["RAY_AUTH_TOKEN"] for one in environ}) == 1
    assert all(one["RAY_AUTH_MODE"] == "token" for one in environ)


@pytest.mark.ray
@pytest.mark.slow
def test_documents_are_found_everywhere_and_answered_where_they_are_in_memory(
    served: Served, client: httpx.Client
) -> None:
    with served.client() as stranger:
        del stranger.headers["authorization"]
        assert stranger.get("/ready").status_code == 200
        assert stranger.get("/v1/models").status_code == 401
    assert client.post("/v1/kb", json={"name": "a"}).status_code == 201
    for document in DOCUMENTS:  # each by whichever replica is free
        assert client.post("/v1/kb/a/documents", json={"documents": [document]}).json()["added"] == 1
    with ThreadPoolExecutor(4) as pool:
        searches = [{"query": document["text"], "top_k": 1} for document in DOCUMENTS * 2]
        found = pool.map(lambda sent: client.post("/v1/kb/a/search", json=sent).json()["data"][0]["id"], searches)
        assert list(found) == [document["id"] for document in DOCUMENTS * 2]
    assert served.figures(client, "gritkit_kb_searches_total").keys() == set(REPLICAS)  # both were asked

    for document in DOCUMENTS:
        answer = client.post("/v1/kb/a/ask", json=asked(document["text"])).json()
        assert (answer["sources"][0]["id"], answer["recomputed"]) == (document["id"], 0)
    before = {tier: served.figures(client, "gritkit_kb_reads_total", tier=tier) for tier in ("memory", "disk", "lost")}
    for document in DOCUMENTS * 2:
        assert client.post("/v1/kb/a/ask", json=asked(document["text"])).status_code == 200
    after = {tier: served.figures(client, "gritkit_kb_reads_total", tier=tier) for tier in ("memory", "disk", "lost")}
    assert after["disk"] == before["disk"]
    assert after["lost"] == before["lost"]
    shares = [after["memory"][name] - before["memory"][name] for name in REPLICAS]
    assert sum(shares) == 2 * len(DOCUMENTS)
    assert min(shares) > 0
    assert served.figures(client, "gritkit_moved_total")["front"] > 0

    stream = {"messages": [{"role": "user", "content": DOCUMENTS[0]["text"]}], "kb": "a", "stream": True}
    with client.stream("POST", "/v1/chat/completions", json=stream | {"max_tokens": 4}) as answer_stream:
        lines = [line for line in answer_stream.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[0].removeprefix("data: "))["gritkit"]["sources"][0]["id"] == DOCUMENTS[0]["id"]


class Load:
    """Clients that go on until they are told to end; what they were told is kept."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._end = threading.Event()
        self.statuses: Counter[int] = Counter()
        self.acknowledged: set[str] = set()
        self.bodies: list[str] = []
        self.count = 0
        self._lock = threading.Lock()
        works: list[Callable[[httpx.Client, int], httpx.Response]] = [
            self.add,
            self.add,
            self.ask,
            self.ask,
            self.embed,
        ]
        self._threads = [threading.Thread(target=self._go, args=(work,)) for work in works]

    def add(self, client: httpx.Client, number: int) -> httpx.Response:
        id = f"{threading.get_ident()}-{number}"
        reply = client.post("/v1/kb/a/documents", json={"documents": [{"id": id, "text": f"load {id}"}]})
        if reply.status_code == 200 and reply.json()["added"] == 1:
            with self._lock:
                self.acknowledged.add(id)
        return reply

    def ask(self, client: httpx.Client, number: int) -> httpx.Response:
        return client.post("/v1/kb/a/ask", json=asked(DOCUMENTS[number % len(DOCUMENTS)]["text"]))

    def embed(self, client: httpx.Client, number: int) -> httpx.Response:
        return client.post("/v1/embeddings", json={"input": f"load {number}"})

    def _go(self, work: Callable[[httpx.Client, int], httpx.Response]) -> None:
        with self._served.client() as client:
            number = 0
            while not self._end.is_set():
                number += 1
                reply = work(client, number)
                with self._lock:
                    self.count += 1
                    self.statuses[reply.status_code] += 1
                    if reply.status_code != 200:
                        self.bodies.append(reply.text)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    def more(self, count: int) -> None:
        """Wait for so many more replies."""
        target, until = self.count + count, time.monotonic() + PATIENCE_S
        while self.count < target:
            assert time.monotonic() < until, (self.statuses, self._served.log.read_text()[-3000:])
            self._end.wait(0.05)


@pytest.mark.ray
@pytest.mark.slow
def test_a_replica_that_is_killed_under_load_loses_nothing_and_comes_back(served: Served, client: httpx.Client) -> None:
    before = served.pid_of("replica-1")
    with Load(served) as load:
        load.more(30)
        assert load.statuses.keys() == {200}
        os.kill(before, signal.SIGKILL)
        load.more(60)
        failed = load.statuses.total() - load.statuses[200]
        until = time.monotonic() + PATIENCE_S
        while served.figures(client, "gritkit_replicas", state="ready") != {"front": 2.0}:
            assert time.monotonic() < until, served.log.read_text()[-3000:]
        load.more(30)
    assert load.statuses.keys() <= {200, 502}
    assert load.statuses[502] <= 2  # those that were adding on it
    assert load.statuses.total() - load.statuses[200] == failed  # and none after its end
    assert all(json.loads(body)["error"]["code"] == "replica_lost" for body in load.bodies)
    assert served.pid_of("replica-1") != before
    assert [event["replica"] for event in served.events("replica lost")] == ["replica-1"]

    ids: list[str] = []
    while True:
        after = {"after": ids[-1]} if ids else {}
        page = client.get("/v1/kb/a/documents", params={"limit": 100, **after}).json()["data"]
        ids += [one["id"] for one in page]
        if len(page) < 100:
            break
    assert load.acknowledged
    assert load.acknowledged <= set(ids)
    for id in sorted(load.acknowledged)[:20]:
        hits = client.post("/v1/kb/a/search", json={"query": f"load {id}", "top_k": 1, "by": "text"}).json()["data"]
        assert hits[0]["id"] == id
    shares = served.figures(client, "gritkit_kb_reads_total", tier="disk")
    for document in DOCUMENTS:
        assert client.post("/v1/kb/a/ask", json=asked(document["text"])).json()["recomputed"] == 0
    again = served.figures(client, "gritkit_kb_reads_total", tier="disk")
    assert again["replica-1"] > shares["replica-1"]  # its documents came back to it
    assert again["replica-0"] == shares["replica-0"]


@pytest.mark.ray
@pytest.mark.slow
def test_sigterm_ends_it_whole(served: Served) -> None:
    processes = psutil.Process(served.process.pid).children(recursive=True)
    folder = folder_of(processes)
    assert folder.stat().st_mode & 0o077 == 0
    with served.client() as client:
        body = {"messages": [{"role": "user", "content": "go on"}], "stream": True, "max_tokens": 200}
        with client.stream("POST", "/v1/chat/completions", json=body) as stream:
            lines = (line for line in stream.iter_lines() if line)
            next(lines)
            served.process.send_signal(signal.SIGTERM)
            assert list(lines)[-1] == "data: [DONE]"
    assert served.process.wait(PATIENCE_S) == 0
    check_gone(processes)
    assert not folder.exists()
    assert "Traceback" not in served.log.read_text()
    assert "SIGTERM received" not in served.log.read_text()


def folder_of(processes: list[psutil.Process]) -> Path:
    """Where Ray's processes have their files."""
    assert len(processes) > 4
    (folder,) = {
        Path(argument.split("=", 1)[1]).parent
        for process in processes
        for argument in process.cmdline()
        if argument.startswith("--temp-dir=")
    }
    return folder


def check_gone(processes: list[psutil.Process]) -> None:
    """Ended, whether or not somebody has taken notice of it. Ray's agents take a minute to see that they are alone."""
    _, alive = psutil.wait_procs(processes, timeout=180)
    assert [one for one in alive if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.ray
@pytest.mark.slow
def test_its_processes_end_with_it_when_it_is_killed(tmp_path: Path) -> None:
    save_model(tmp_path)
    with starting(tmp_path, "tiny-model", replicas=1) as (process, log):
        ready(process, log)
        processes = psutil.Process(process.pid).children(recursive=True)
        folder = folder_of(processes)
        process.kill()
        process.wait()
        check_gone(processes)
    shutil.rmtree(folder)


@pytest.mark.ray
@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "tiny-model").mkdir()
    with starting(tmp_path, "tiny-model", replicas=2) as (process, log):
        assert process.wait(START_S) == 1
        assert process.stdout is not None
        assert process.stdout.read() == b""
        said = log.read_text()
    assert re.search(r"^Error: .*tiny-model", said, re.MULTILINE), said
    assert "Traceback" not in said
    assert "local Ray instance" not in said  # by a call that came after its end
    events = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert not any(event["event"] in ("failure", "replica lost") for event in events)


# -- without Ray -------------------------------------------------------------------------------------------------------


def test_replicas_and_engine_go_together(tmp_path: Path) -> None:
    refused = gritkit("serve", str(tmp_path), "--engine", "ray")
    assert (refused.code, refused.stdout) == (2, b"")
    assert "--engine ray needs --replicas N" in refused.stderr


def test_a_host_that_others_reach_is_refused_before_ray_is_started(tmp_path: Path) -> None:
    refused = gritkit("serve", str(tmp_path), "--engine", "ray", "--replicas", "2", "--host", "0.0.0.0")
    assert refused.code == 1
    assert "needs an API key" in refused.stderr
    assert not list(tmp_path.iterdir())


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"'ray\[serve\]'.*gritkit\[scale\]"):
        RayService(Plan("m", Settings(), lambda _: None), 2, device=None)
