"""Several replicas as one server, with all but Ray: ``test_ray_serve`` has it with Ray."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("lancedb")

from gritkit.errors import GritkitError, InputError
from gritkit_serve.app import create_app
from gritkit_serve.ray_fleet import REPEATABLE, Fleet, Forwarded, LogEntry, LostError, Moved, Notice
from gritkit_serve.ray_front import merged
from gritkit_serve.ray_replica import Plan
from gritkit_serve.service import Service
from gritkit_serve.settings import Settings
from tests.serve.knowledge import DOCUMENTS, error_of, events, filled, library
from tests.serve.replicas import LocalLink, Replicated, replicated
from tests.serve.serving import PATIENCE_S
from tests.serve.talking import until

ASKED = [f"which text says {document['text']}?" for document in DOCUMENTS[:6]]
LONG = {"max_tokens": 400, "temperature": 0, "stream": True}  # sampled, it might be short
NAMES = ("replica-0", "replica-1")


def body(question: str, **options: Any) -> dict[str, Any]:
    return {"question": question, "max_tokens": 8, "reuse": "cached", "top_k": 1, **options}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("replicas") / "kbs"


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Replicated]:
    with replicated(folder) as running:
        with running.client() as client:
            filled(client, "a")
        yield running


@pytest.fixture
def client(server: Replicated) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def owner_of(server: Replicated, question: str) -> str:
    """Who answers a question, by who loads its passage."""
    with server.client() as client:
        before = {name: server.reads(name, "memory") + server.reads(name, "disk") for name in NAMES}
        assert client.post("/v1/kb/a/ask", json=body(question)).status_code == 200
        after = {name: server.reads(name, "memory") + server.reads(name, "disk") for name in NAMES}
    (owner,) = (name for name in NAMES if after[name] > before[name])
    return owner


def test_a_question_is_answered_by_the_replica_that_has_its_documents_in_memory(server: Replicated) -> None:
    owners = {question: owner_of(server, question) for question in ASKED}
    assert set(owners.values()) == set(NAMES)
    moved = server.front.fleet.num_moved
    for _ in range(2):
        for question, owner in owners.items():
            before = {name: server.reads(name, "memory") for name in NAMES}
            on_disk = [server.reads(name, "disk") for name in NAMES]
            assert owner_of(server, question) == owner
            assert {name: server.reads(name, "memory") - before[name] for name in NAMES} == {
                name: int(name == owner) for name in NAMES
            }
            assert [server.reads(name, "disk") for name in NAMES] == on_disk
    assert server.front.fleet.num_moved > moved


def test_answers_are_the_library_s_whole_and_streamed_moved_or_not(server: Replicated, folder: Path) -> None:
    moved = server.front.fleet.num_moved
    with library(folder, "a") as rag, server.client() as client:
        for question in ASKED:
            answer = rag.ask(question, max_new_tokens=8, reuse="cached", top_k=1)
            whole = client.post("/v1/kb/a/ask", json=body(question), headers={"x-request-id": "mine"})
            assert (whole.status_code, whole.headers["x-request-id"]) == (200, "mine")
            assert whole.json()["text"] == answer.text
            assert [one["id"] for one in whole.json()["sources"]] == [hit.id for hit in answer.sources]
            with client.stream("POST", "/v1/kb/a/ask", json=body(question, stream=True)) as streamed:
                told = list(events(streamed.iter_lines()))
            assert [name for name, _ in told[:1] + told[-2:]] == ["sources", "answer", "message"]
            assert "".join(data["text"] for name, data in told if name == "delta") == answer.text
            chat = {"messages": [{"role": "user", "content": question}], "kb": {"name": "a", "top_k": 1}}
            reply = client.post("/v1/chat/completions", json=chat | {"max_tokens": 8, "temperature": 0})
            assert reply.json()["gritkit"]["sources"][0]["id"] == answer.sources[0].id
    assert server.front.fleet.num_moved > moved


def test_a_chat_goes_on_where_its_beginning_was_read(server: Replicated, client: httpx.Client) -> None:
    writers = set()
    for number in range(8):
        messages = [{"role": "user", "content": f"chat {number}: the quick brown fox jumps over"}]
        before = {name: link.num_answers for name, link in server.links.items()}
        for _ in range(3):
            sent = {"messages": messages, "max_tokens": 4}
            reply = client.post("/v1/chat/completions", json=sent).json()
            turn = {"role": "assistant", "content": reply["choices"][0]["message"]["content"]}
            cached = reply["usage"]["prompt_tokens_details"]["cached_tokens"]
            assert (cached > 20) == (len(messages) > 1), (cached, messages)
            messages = [*messages, turn, {"role": "user", "content": "go on"}]
        asked = {name: link.num_answers - before[name] for name, link in server.links.items()}
        assert sorted(asked.values()) == [0, 3]
        writers |= {name for name, count in asked.items() if count}
    assert writers == set(NAMES)


def test_what_one_replica_adds_every_other_finds_and_answers_from(server: Replicated, client: httpx.Client) -> None:
    """Straight to each replica, past the choice between them."""

    async def ask(link: LocalLink, path: str, sent: Any) -> dict[str, Any]:
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"content-length", b"9")]
        scope = {
            "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "headers": headers,
            "query_string": b"", "http_version": "1.1", "scheme": "http",
        }  # fmt: skip
        text = b""
        async for piece in link.answer(Forwarded(scope, json.dumps(sent).encode())):
            if isinstance(piece, list):
                text += b"".join(message.get("body", b"") for message in piece)
        reply: dict[str, Any] = json.loads(text)
        return reply

    def asked(name: str, path: str, sent: Any) -> dict[str, Any]:
        coroutine = ask(server.links[name], path, sent)
        return asyncio.run_coroutine_threadsafe(coroutine, server.loop).result(PATIENCE_S)

    for name in NAMES:
        document = {"id": f"of {name}", "text": f"Only {name} was told that otters sleep in knitted hammocks."}
        assert asked(name, "/v1/kb/a/documents", {"documents": [document]})["added"] == 1
        for other in NAMES:
            hits = asked(other, "/v1/kb/a/search", {"query": document["text"], "top_k": 1})["data"]
            assert hits[0]["id"] == document["id"]
            assert asked(other, "/v1/kb/a/ask", body(document["text"]))["recomputed"] == 0
    for name in NAMES:
        assert client.request("DELETE", "/v1/kb/a/documents", json={"ids": [f"of {name}"]}).json()["deleted"] == 1
        for other in NAMES:
            hits = asked(other, "/v1/kb/a/search", {"query": "otters in hammocks", "top_k": 50})["data"]
            assert f"of {name}" not in {hit["id"] for hit in hits}


def test_files_are_passed_on_whole(server: Replicated, client: httpx.Client) -> None:
    files = [("files", (f"{n}.txt", f"Badgers dig setts, part {n}.".encode(), "text/plain")) for n in range(3)]
    assert client.post("/v1/kb/a/documents", files=files).json()["added"] == 3
    ids = [one["id"] for one in client.get("/v1/kb/a/documents", params={"limit": 100}).json()["data"]]
    mine = [id for id in ids if ".txt" in id]
    assert client.request("DELETE", "/v1/kb/a/documents", json={"ids": mine}).json()["deleted"] == 3


def test_a_key_is_asked_for_before_any_replica_hears_of_a_request(tmp_path: Path) -> None:
    settings = Settings(api_keys=("k" * 20,), drain_seconds=2.0, max_buffered_bytes=3000)
    with replicated(tmp_path, settings=settings) as running, running.client() as client:
        assert client.get("/health").json() == {"status": "ok", "state": "ready"}
        for path in ("/v1/models", "/metrics", "/v1/kb"):
            error_of(client.get(path), 401)
        assert sum(link.num_answers for link in running.links.values()) == 0
        client.headers["authorization"] = "Bearer " + "k" * 20
        assert client.get("/v1/models").status_code == 200
        assert client.get("/v1/nothing").status_code == 404
        assert sum(link.num_answers for link in running.links.values()) == 2
        assert client.post("/v1/kb", json={"name": "a"}).status_code == 201
        large = [("files", ("a.txt", b"word " * 1000, "text/plain"))]
        assert "as many request bodies" in error_of(client.post("/v1/kb/a/documents", files=large), 429)
        assert sum(link.num_answers for link in running.links.values()) == 3


def test_figures_have_the_replica_s_name_and_count_a_request_once(server: Replicated, client: httpx.Client) -> None:
    client.post("/tokenize", json={"input": "figures"})
    deadline = time.monotonic() + PATIENCE_S
    counted: list[str] = []
    while not counted:  # a request is counted after its client has the answer
        assert time.monotonic() < deadline
        text = client.get("/metrics").text
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        counted = [line for line in lines if line.startswith("gritkit_requests_total") and "/tokenize" in line]
    assert all('replica="' in line for line in lines)
    assert len(counted) == 1
    assert 'replica="front"' in counted[0]
    for name in NAMES:
        assert f'gritkit_engine_ready{{replica="{name}"}} 1.0' in lines
        assert any(line.startswith("gritkit_kb_reads_total{") and f'replica="{name}"' in line for line in lines)
    assert 'gritkit_replicas{replica="front",state="ready"} 2.0' in lines
    assert text.count("# TYPE gritkit_engine_ready ") == 1


def test_a_replica_that_cannot_tell_its_figures_is_left_out() -> None:
    assert b'up{replica="front"} 1.0' in merged("# TYPE up gauge\nup 1\n", {"replica-0": ""})


@pytest.fixture
def fragile(folder: Path, server: Replicated) -> Iterator[Replicated]:
    """Replicas of the same knowledge bases, to be killed."""
    with replicated(folder) as running:
        yield running


def begin_long(client: httpx.Client, running: Replicated) -> tuple[Any, Iterator[str], LocalLink]:
    """A stream that has begun, and the replica that writes it."""
    assert until(lambda: nobody_inside(running), PATIENCE_S)  # what was answered before
    sent = {"messages": [{"role": "user", "content": "go on"}], **LONG}
    stream = client.stream("POST", "/v1/chat/completions", json=sent)
    lines = stream.__enter__().iter_lines()
    assert next(lines).startswith("data: ")
    (writer,) = (one for one in running.front.fleet.replicas.values() if one.inside)
    return stream, lines, running.links[writer.name]


def nobody_inside(running: Replicated) -> bool:
    """Whether every request has come to its end, which is after its client has the answer."""
    return all(one.inside == 0 for one in running.front.fleet.replicas.values())


def test_a_lost_replica_breaks_its_streams_and_nothing_else(fragile: Replicated) -> None:
    with fragile.client() as client:
        owners = {question: owner_of(fragile, question) for question in ASKED}
        stream, lines, lost = begin_long(client, fragile)
        fragile.do(lost.kill)
        rest = [line for line in lines if line]
        assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "replica_lost"
        stream.__exit__(None, None, None)
        fragile.wait(lambda: len(fragile.front.fleet.ready) == 1)
        for question in ASKED:  # those of the lost one's documents too
            assert client.post("/v1/kb/a/ask", json=body(question)).status_code == 200
        assert client.get("/ready").status_code == 200
        fragile.do(lost.revive)
        fragile.wait(lambda: len(fragile.front.fleet.ready) == 2)
        assert {question: owner_of(fragile, question) for question in ASKED} == owners


def test_what_is_not_begun_is_asked_of_another_unless_it_changes_something(fragile: Replicated) -> None:
    """Both replicas are lost, unnoticed, under requests that wait for them."""
    fleet = fragile.front.fleet
    with fragile.client() as client:
        question = next(question for question in ASKED if owner_of(fragile, question) == "replica-1")
        lost = fragile.links["replica-1"]
        entered = threading.Event()
        fragile.do(lambda: _hang(lost, entered))
        replies: dict[str, httpx.Response] = {}

        def post(what: str, path: str, sent: Any) -> None:
            replies[what] = client.post(path, json=sent)

        first = threading.Thread(target=post, args=("ask", "/v1/kb/a/ask", body(question)))
        first.start()
        assert entered.wait(PATIENCE_S)
        fleet.replicas["replica-0"].state = "lost"  # so that what comes now can only go to the other
        entered.clear()
        second = threading.Thread(target=post, args=("add", "/v1/kb/a/documents", {"documents": [DOCUMENTS[0]]}))
        second.start()
        assert entered.wait(PATIENCE_S)
        fleet.replicas["replica-0"].state = "ready"
        repeated = fleet.num_repeated
        fragile.do(lost.kill)
        first.join(PATIENCE_S)
        second.join(PATIENCE_S)
    assert replies["ask"].status_code == 200
    assert fleet.num_repeated == repeated + 1
    assert "whether it was done is not known" in error_of(replies["add"], 502)


def _hang(link: LocalLink, entered: threading.Event) -> None:
    """From now on it takes requests and begins none."""

    async def answer(request: Forwarded) -> Any:
        entered.set()
        await asyncio.Event().wait()
        yield []

    link.replica.answer = answer  # type: ignore[method-assign]


def test_without_a_replica_the_server_lives_and_says_so(fragile: Replicated) -> None:
    with fragile.client() as client:
        for link in fragile.links.values():
            fragile.do(link.kill)
        fragile.wait(lambda: not fragile.front.fleet.ready)
        assert client.get("/health").json()["state"] == "starting"
        assert client.get("/ready").status_code == 503
        refused = client.get("/v1/models")
        assert "no replica" in error_of(refused, 503)
        assert int(refused.headers["retry-after"]) > 0
        assert client.get("/").status_code == 200
        assert 'state="ready"} 0.0' in client.get("/metrics").text


def test_a_client_that_leaves_frees_its_slot_on_the_replica(fragile: Replicated) -> None:
    with fragile.client() as client:
        stream, _, writer = begin_long(client, fragile)
        engine = writer.replica.service.engine
        assert until(lambda: engine.load().running == 1, PATIENCE_S)  # a stream's first words are the server's own
        stream.__exit__(None, None, None)
        assert until(lambda: engine.load().running == engine.load().waiting == 0, PATIENCE_S)
        assert until(lambda: engine.load().counts.get("cancelled", 0) == 1, PATIENCE_S)  # it has not come to its end
        assert until(lambda: nobody_inside(fragile), PATIENCE_S)


def test_busy_replicas_give_their_documents_requests_to_others() -> None:
    async def scene() -> None:
        fleet = Fleet()
        begun = asyncio.ensure_future(fleet.begin({name: _Silent() for name in ("a", "b", "c")}))
        await begun
        busy = fleet.replicas["a"]
        busy.inside = 7
        assert fleet._able(set()) == ("a", "b", "c")
        busy.inside = 8
        assert fleet._able(set()) == ("b", "c")
        fleet.replicas["b"].inside = fleet.replicas["c"].inside = 8
        assert fleet._able(set()) == ("a", "b", "c")
        assert fleet._able({"b"}) == ("a", "c")
        assert fleet._chosen(None, set()).name == "a"
        assert fleet._chosen("c", set()).name == "c"
        await fleet.end(0)

    asyncio.run(scene())


class _Silent:
    """A replica that is ready and is asked nothing."""

    async def watch(self) -> Any:
        yield Notice("ready", 1)
        await asyncio.Event().wait()

    async def stop(self, drain_s: float) -> None: ...


def test_a_model_that_cannot_be_loaded_ends_the_start_with_its_reason(tmp_path: Path) -> None:
    def load(_: Service) -> None:
        raise InputError("there is no model")

    with pytest.raises(GritkitError, match="there is no model"), replicated(tmp_path, plan=Plan("m", Settings(), load)):
        pass


def test_a_replica_that_ends_while_it_loads_is_given_up(tmp_path: Path) -> None:
    async def scene() -> None:
        fleet = Fleet()
        with pytest.raises(GritkitError, match=r"replica-0 ended 3 times .* memory"):
            await asyncio.wait_for(fleet.begin({"replica-0": _Dying()}), PATIENCE_S)
        await fleet.end(0)

    asyncio.run(scene())


class _Dying(_Silent):
    async def watch(self) -> Any:
        yield Notice("loading", 1)
        raise LostError


def test_a_replica_that_says_nonsense_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    class Confused(_Silent):
        said = 0

        async def watch(self) -> Any:
            self.said += 1
            if self.said == 1:
                raise ValueError("nonsense")
            async for notice in super().watch():
                yield notice

    async def scene() -> None:
        fleet = Fleet()
        await asyncio.wait_for(fleet.begin({"replica-0": Confused()}), PATIENCE_S)
        await fleet.end(0)

    with caplog.at_level(logging.ERROR, "gritkit"):
        asyncio.run(scene())
    (record,) = caplog.records
    assert record.fields["error"] == "ValueError"  # type: ignore[attr-defined]
    assert "nonsense" not in str(record.fields)  # type: ignore[attr-defined]


def test_what_replicas_warn_of_is_in_the_server_s_log(caplog: pytest.LogCaptureFixture) -> None:
    class Warning(_Silent):
        async def watch(self) -> Any:
            yield Notice("ready", 1, log=(LogEntry(logging.WARNING, "disk is slow", {"ms": 9}),))
            await asyncio.Event().wait()

    async def scene() -> None:
        fleet = Fleet()
        await fleet.begin({"replica-3": Warning()})
        await fleet.end(0)

    with caplog.at_level(logging.WARNING, "gritkit"):
        asyncio.run(scene())
    (record,) = (record for record in caplog.records if record.getMessage() == "disk is slow")
    assert record.fields == {"ms": 9, "replica": "replica-3"}  # type: ignore[attr-defined]


def test_what_was_found_survives_the_way_to_another_process(server: Replicated) -> None:
    found = _question(server)
    moved = pickle.loads(pickle.dumps(Moved("replica-1", found)))
    assert (moved.owner, repr(moved.question)) == ("replica-1", repr(found))  # rows have arrays
    assert found.used[0].row.block_key


def _question(server: Replicated) -> Any:
    bases = server.links["replica-0"].replica.service.bases
    assert bases is not None
    coroutine = bases.read("a", lambda rag: rag.find(ASKED[0], top_k=1))
    return asyncio.run_coroutine_threadsafe(coroutine, server.loop).result(PATIENCE_S)


def test_what_changes_nothing_is_repeated() -> None:
    """Of all routes: a replica that is lost at another one leaves open what it has done."""
    paths: Any = create_app(Service("tiny")).openapi()["paths"]
    changing = {path for path, operations in paths.items() if "post" in operations and not REPEATABLE.fullmatch(path)}
    assert changing == {"/v1/kb", "/v1/kb/{name}/documents"}
