"""/v1/kb over sockets: bases, documents, searches; and what hostile clients send."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("lancedb")

from gritkit.model import GritModel
from gritkit.rag import Document
from gritkit_serve import adding
from gritkit_serve.bases import Bases
from gritkit_serve.settings import Settings
from tests.models import TEXTS
from tests.serve.knowledge import DOCUMENTS, error_of, events, filled, kb_serving, library
from tests.serve.serving import PATIENCE_S, Running, serving
from tests.serve.talking import asking, until
from tests.serve.test_bases import HOSTILE
from tests.serve.test_disconnect import Held


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("routes") / "kbs"


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    with kb_serving(folder) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as client:
        filled(client, "library")
        yield client


# -- bases -------------------------------------------------------------------------------------------------------------


def test_a_base_is_made_looked_at_listed_and_deleted(client: httpx.Client) -> None:
    made = client.post("/v1/kb", json={"name": "one", "chunk_tokens": 64, "chunk_overlap": 3, "codec": "int4",
                                       "instruction": "Find the text"})  # fmt: skip
    assert made.status_code == 201
    assert made.json() == client.get("/v1/kb/one").json()
    assert made.json() == made.json() | {
        "name": "one", "object": "kb", "documents": 0, "chunks": 0, "codec": "int4", "chunk_tokens": 64,
        "chunk_overlap": 3, "dim": 32, "prompt_format": "grit", "instruction": "Find the text",
    }  # fmt: skip
    listed = client.get("/v1/kb").json()
    assert (listed["object"], listed["fixed"]) == ("list", False)
    assert [base["name"] for base in listed["data"]] == ["library", "one"]
    assert [base["documents"] for base in listed["data"]] == [len(DOCUMENTS), 0]
    assert listed["data"][0]["bytes"] > listed["data"][0]["block_bytes"] > 0
    assert "there already" in error_of(client.post("/v1/kb", json={"name": "one"}), 409)
    assert client.delete("/v1/kb/one").json() == {"name": "one", "object": "kb.deleted", "deleted": True}
    for response in (client.get("/v1/kb/one"), client.delete("/v1/kb/one")):
        assert "no knowledge base 'one'" in error_of(response, 404)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "name is missing"),
        ({"name": "x", "size": 3}, "unknown field 'size'"),
        ({"name": 3}, "name=3 must be a valid string"),
        ({"name": "x", "codec": "zip"}, "codec='zip' must be 'exact'"),
        ({"name": "x", "chunk_tokens": 1}, "chunk_tokens=1 must be between"),
        ({"name": "x", "chunk_tokens": "64"}, "chunk_tokens='64'"),
        ({"name": "x", "chunk_tokens": 64, "chunk_overlap": 60}, "chunk_overlap=60"),
        ({"name": "x", "chunk_overlap": -1}, "chunk_overlap=-1"),
        ({"name": "x", "instruction": ""}, "instruction=''"),
        ([], "the body=[0 items]"),
    ],
)
def test_a_base_that_cannot_be_made_says_why(client: httpx.Client, body: Any, said: str) -> None:
    assert said in error_of(client.post("/v1/kb", json=body), 400)
    assert client.get("/v1/kb/x").status_code == 404


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_no_bases(client: httpx.Client, folder: Path, name: str) -> None:
    before = sorted(folder.rglob("*.json"))
    body = json.dumps({"name": name}).encode()
    made = client.post("/v1/kb", content=body, headers={"content-type": "application/json"})
    error_of(made, 400)
    raw = "".join(f"%{byte:02X}" for byte in name.encode("utf-8", "surrogatepass"))
    for method, rest, sent in (
        ("GET", "", None),
        ("DELETE", "", None),
        ("GET", "/documents", None),
        ("POST", "/documents", {"documents": [{"text": "x"}]}),
        ("DELETE", "/documents", {"ids": ["x"]}),
        ("POST", "/search", {"query": "x"}),
        ("POST", "/ask", {"question": "x"}),
    ):
        response = client.request(method, f"/v1/kb/{raw}{rest}", json=sent)
        assert response.status_code in (404, 405), (method, rest, response.text)  # 405: /v1/kb/ + nothing
    assert sorted(folder.rglob("*.json")) == before


# -- documents ---------------------------------------------------------------------------------------------------------


def test_documents_are_added_updated_skipped_and_named_where_they_fail(client: httpx.Client) -> None:
    filled(client, "two", [{"id": "a", "text": "first"}, {"text": "no id"}])
    path = "/v1/kb/two/documents"
    again = {"documents": [
        {"id": "a", "text": "another text", "metadata": {"year": 2}},
        {"text": "no id"},
        {"id": "empty", "text": " \n"},
        {"id": "long", "text": "word " * 400, "metadata": {"n": [1, {"x": None}]}, "kind": "markdown"},
        {"text": ""},
    ]}  # fmt: skip
    report = client.post(path, json=again).json()
    assert {name: report[name] for name in ("added", "updated", "skipped", "failed")} == {
        "added": 1, "updated": 1, "skipped": 1, "failed": 2,
    }  # fmt: skip
    assert report["chunks"] > 2
    assert report["errors"][0] == {"id": "empty", "reason": "it is empty: drop it or give it words"}
    assert len(report["errors"][1]["id"]) == 32  # a digest
    listed = client.get(path).json()
    assert not listed["has_more"]
    by_id = {one["id"]: one for one in listed["data"]}
    assert by_id["a"] == {"id": "a", "metadata": {"year": 2}, "chunks": 1}
    assert by_id["long"]["metadata"] == {"n": [1, {"x": None}]}
    assert by_id["long"]["chunks"] == report["chunks"] - 1
    assert client.request("DELETE", path, json={"ids": ["a", "nope", "long", "a"]}).json() == {"deleted": 2}
    assert len(client.get(path).json()["data"]) == 1
    client.delete("/v1/kb/two")


def test_documents_are_listed_in_pages(client: httpx.Client) -> None:
    path, ids, after = "/v1/kb/library/documents", [], None
    while True:
        page = client.get(path, params={"limit": 7, **({} if after is None else {"after": after})}).json()
        ids += [one["id"] for one in page["data"]]
        if not page["has_more"]:
            break
        after = ids[-1]
    assert ids == [one["id"] for one in DOCUMENTS]
    for params in ({"limit": 0}, {"limit": 1001}, {"limit": "x"}, {"after": "x" * 600}):
        assert client.get(path, params=params).status_code == 400


def counted(client: httpx.Client, outcome: str) -> int:
    """Documents that the server's metrics have by now."""
    line = f'gritkit_kb_documents_total{{outcome="{outcome}"}} '
    found = [one for one in client.get("/metrics").text.splitlines() if one.startswith(line)]
    return int(float(found[0].removeprefix(line))) if found else 0


def test_progress_is_told_commit_by_commit(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adding, "DOCUMENTS_AT_ONCE", 4)
    client.post("/v1/kb", json={"name": "three"})
    before, failed = counted(client, "added"), counted(client, "failed")
    body = {"documents": [*DOCUMENTS[:9], {"id": "e", "text": ""}]}
    with client.stream("POST", "/v1/kb/three/documents?stream=true", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        told = []
        for name, data in events(response.iter_lines()):
            told.append((name, data))
            if name == "progress":  # what is said to be done is there
                there = client.get("/v1/kb/three").json()["documents"]
                assert there >= min(data["documents_done"], 9)
                assert counted(client, "added") - before >= min(data["documents_done"], 9)
    progress = [data for name, data in told if name == "progress"]
    assert [one["documents_done"] for one in progress] == [0, 4, 8, 10]
    assert {one["documents_total"] for one in progress} == {10}
    (name, report), done = told[-2:]
    assert (name, done) == ("report", ("message", "[DONE]"))
    assert (report["added"], report["failed"], report["errors"][0]["id"]) == (9, 1, "e")
    assert (counted(client, "added") - before, counted(client, "failed") - failed) == (9, 1)
    client.delete("/v1/kb/three")


def test_an_addition_that_is_abandoned_ends_with_its_commit(
    server: Running, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adding, "DOCUMENTS_AT_ONCE", 1)
    client.post("/v1/kb", json={"name": "four"})
    before = counted(client, "added")
    body = {"documents": [{"id": f"d{n:03}", "text": f"text {n}"} for n in range(500)]}
    with server.client() as other:
        with other.stream("POST", "/v1/kb/four/documents?stream=true", json=body) as response:
            told = events(response.iter_lines())
            assert [next(told)[1]["documents_done"] for _ in range(2)] == [0, 1]
        # closed by the client; then the place among the writers is free, and what was done is whole
        bases = server.service.bases
        assert bases is not None
        ended = threading.Event()
        while bases._turns and not ended.wait(0.01):
            pass
    num = client.get("/v1/kb/four").json()["documents"]
    assert 1 <= num < 500
    assert counted(client, "added") - before == num
    listed = client.get("/v1/kb/four/documents", params={"limit": 1000}).json()["data"]
    assert [one["id"] for one in listed] == [f"d{n:03}" for n in range(num)]
    report = client.post("/v1/kb/four/documents", json={"documents": body["documents"][: num + 1]}).json()
    assert (report["skipped"], report["added"]) == (num, 1)
    client.delete("/v1/kb/four")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Chunks of each pass that documents are read in."""
    read, seen = GritModel.read_tokens, []

    def counted(model: GritModel, sequences: Any, **options: Any) -> Any:
        seen.append(len(sequences))
        return read(model, sequences, **options)

    monkeypatch.setattr(GritModel, "read_tokens", counted)
    return seen


LARGE = {"documents": [{"id": "large", "text": "ab cd " * 12_000}]}
"""More than a dozen passes, in one commit."""


def bases_of(server: Running) -> Bases:
    assert server.service.bases is not None
    return server.service.bases


@pytest.mark.parametrize("query", ["", "?stream=true"])
def test_a_large_document_ends_when_its_client_leaves(
    server: Running, client: httpx.Client, passes: list[int], query: str
) -> None:
    filled(client, "seven", [{"id": "small", "text": "stays"}])
    block_bytes = client.get("/v1/kb/seven").json()["block_bytes"]
    turns = bases_of(server)._turns
    passes.clear()
    with Held(server) as held, asking(server, f"/v1/kb/seven/documents{query}", LARGE) as connection:
        assert held.waiting.wait(PATIENCE_S)
        connection.close()
        assert until(lambda: turns["seven"].places == 0, PATIENCE_S)
        held.free.set()
        assert until(lambda: "seven" not in turns, PATIENCE_S)
    assert len(passes) == 1  # the one that it was at
    assert client.get("/v1/kb/seven").json()["block_bytes"] == block_bytes
    assert [one["id"] for one in client.get("/v1/kb/seven/documents").json()["data"]] == ["small"]
    assert client.post("/v1/kb/seven/documents", json=LARGE).json()["added"] == 1
    assert len(passes) > 12
    client.delete("/v1/kb/seven")


def test_a_large_document_ends_with_its_time(tmp_path: Path, passes: list[int]) -> None:
    settings = Settings(request_seconds=3.0, drain_seconds=2.0)
    with kb_serving(tmp_path, settings=settings) as short, short.client() as client:
        client.post("/v1/kb", json={"name": "a"})
        with Held(short) as held:
            answer = client.post("/v1/kb/a/documents", json=LARGE)
            assert answer.status_code == 504, answer.text
            held.free.set()
            assert until(lambda: not bases_of(short)._turns, PATIENCE_S)
        assert len(passes) == 1
        assert client.get("/v1/kb/a").json()["documents"] == 0


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        ([], "documents=[0 items] list should have at least 1 item"),
        ("text", "documents='text'"),
        ([{"id": "a"}], "documents[0].text is missing"),
        (["text"], "documents[0]='text'"),
        ([{"text": 3}], "documents[0].text=3 must be a valid string"),
        ([{"text": "x", "id": ""}], "documents[0].id=''"),
        ([{"text": "x", "id": 7}], "documents[0].id=7"),
        ([{"text": "x", "id": "i" * 513}], "documents[0].id="),
        ([{"text": "x", "url": "http://169.254.169.254/"}], "unknown field 'documents[0].url'"),
        ([{"text": "x", "metadata": ["a"]}], "documents[0].metadata=[1 items]"),
        ([{"text": "x", "metadata": {"a": "b" * 20_000}}], "must be at most 16384 bytes"),
        ([{"text": "x" * 5} for _ in range(1025)], "send at most 1024"),
    ],
)
def test_documents_that_are_none_are_refused_by_name(client: httpx.Client, documents: Any, said: str) -> None:
    response = client.post("/v1/kb/library/documents", json={"documents": documents})
    assert said in error_of(response, 400)
    assert client.get("/v1/kb/library").json()["documents"] == len(DOCUMENTS)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"documents": ' + b"[" * 5000, b'{"documents": [{"text": NaN}]}',
        b'{"documents": [{"text": "\\ud800"}]}', b'{"documents": [{"text": "x", "metadata": {"a": Infinity}}]}',
        b'{"documents": [{"text": "x", "metadata": {"\\udfff": 1}}]}',
        b'{"documents": [{"text": "x", "id": "\\ud800"}]}',
        b'{"documents": [{"text": "x", "metadata": ' + b'{"a":' * 60 + b"1" + b"}" * 60 + b"}]",
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["documents", "documents?stream=true", "search", "ask"])
def test_hostile_bodies_are_refused(client: httpx.Client, body: bytes, path: str) -> None:
    response = client.post(f"/v1/kb/library/{path}", content=body, headers={"content-type": "application/json"})
    error_of(response, 400)


def test_hostile_ids_and_metadata_are_text_and_nothing_else(client: httpx.Client) -> None:
    hostile = [
        "'; DROP TABLE documents; --",
        "../../etc/passwd",
        "nul\0",
        "new\nline",
        "🦊",
        "%00",
        " ",
        '"',
        "a/b?c#d",
    ]
    documents = [{"id": one, "text": f"text {n}", "metadata": {one: one}} for n, one in enumerate(hostile)]
    filled(client, "five", documents)
    listed = client.get("/v1/kb/five/documents").json()["data"]
    assert {one["id"] for one in listed} == set(hostile)
    for one in hostile:
        (hit,) = client.post("/v1/kb/five/search", json={"query": "text", "where": {one: one}}).json()["data"]
        assert (hit["id"], hit["metadata"]) == (one, {one: one})
    for one in hostile:
        assert client.request("DELETE", "/v1/kb/five/documents", json={"ids": [one]}).json() == {"deleted": 1}
    client.delete("/v1/kb/five")


# -- search ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {}, {"top_k": 3}, {"by": "text"}, {"by": "hybrid", "top_k": 5}, {"where": {"mod": 1}},
        {"where": {"mod": 1.0}, "by": "hybrid"}, {"rerank": True, "top_k": 4},
    ],
)  # fmt: skip
def test_a_search_finds_what_the_library_finds(client: httpx.Client, folder: Path, options: dict[str, Any]) -> None:
    found = client.post("/v1/kb/library/search", json={"query": "a quick fox", **options}).json()
    with library(folder, "library") as rag:
        hits = rag.search("a quick fox", **options)
    assert found["object"] == "list"
    assert [(one["id"], one["chunk"], one["text"], one["metadata"]) for one in found["data"]] == [
        (hit.id, hit.chunk, hit.text, hit.metadata) for hit in hits
    ]
    assert [one["score"] for one in found["data"]] == pytest.approx([hit.score for hit in hits], abs=1e-5)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "query is missing"),
        ({"query": ""}, "query=''"),
        ({"query": "   "}, "the query is empty"),
        ({"query": "x", "top_k": 0}, "top_k=0"),
        ({"query": "x", "top_k": 101}, "top_k=101 must be at most 100"),
        ({"query": "x", "top_k": 1e9}, "top_k=1000000000"),
        ({"query": "x", "top_k": True}, "top_k=True"),
        ({"query": "x", "by": "magic"}, "by='magic' must be 'dense', 'text' or 'hybrid'"),
        ({"query": "x", "where": "a=b"}, "where='a=b'"),
        ({"query": "x", "where": {str(n): n for n in range(33)}}, "where={33 fields}"),
        ({"query": "x " * 5000}, "tokens"),
        ({"query": "x" * 70_000}, "query="),
    ],
)
def test_a_search_that_makes_no_sense_says_why(client: httpx.Client, body: Any, said: str) -> None:
    assert said in error_of(client.post("/v1/kb/library/search", json=body), 400)


# -- around ------------------------------------------------------------------------------------------------------------


def test_a_server_without_bases_says_how_to_have_some() -> None:
    from tests.serve.knowledge import model

    with serving(model()) as bare, bare.client() as client:
        assert client.get("/v1/kb").json() == {"object": "list", "data": [], "fixed": True}
        for response in (
            client.post("/v1/kb", json={"name": "a"}),
            client.get("/v1/kb/a"),
            client.post("/v1/kb/a/ask", json={"question": "x"}),
            client.post("/v1/kb/a/documents", json={"documents": [{"text": "x"}]}),
        ):
            assert "--kb" in error_of(response, 404)


def test_a_server_of_one_base_says_that_there_are_no_others(tmp_path: Path) -> None:
    with library(tmp_path, "notes") as rag:
        rag.add(list(TEXTS))
    with kb_serving(tmp_path / "notes") as server, server.client() as client:
        listed = client.get("/v1/kb").json()
        assert ([base["name"] for base in listed["data"]], listed["fixed"]) == (["notes"], True)
        assert "start it with the folder" in error_of(client.post("/v1/kb", json={"name": "other"}), 403)
        assert "by hand" in error_of(client.delete("/v1/kb/notes"), 403)


def test_until_the_model_is_loaded_everything_waits(loading: Running) -> None:
    with loading.client() as client:
        for response in (client.get("/v1/kb"), client.post("/v1/kb/a/ask", json={"question": "x"})):
            error_of(response, 503)
            assert int(response.headers["retry-after"]) >= 1


def test_a_key_opens_knowledge_bases_too(tmp_path: Path) -> None:
    with kb_serving(tmp_path, settings=Settings(api_keys=("secret",))) as server, server.client() as client:
        for method, path in (("GET", "/v1/kb"), ("POST", "/v1/kb"), ("GET", "/v1/kb/a"), ("POST", "/v1/kb/a/ask")):
            error_of(client.request(method, path), 401)
        client.headers["Authorization"] = "Bearer secret"
        filled(client, "a")
        assert client.get("/v1/kb").json()["data"][0]["documents"] == len(DOCUMENTS)


def test_too_many_writers_are_told_to_come_again(tmp_path: Path) -> None:
    with kb_serving(tmp_path, settings=Settings(max_waiting_writes=1)) as server, server.client() as client:
        client.post("/v1/kb", json={"name": "a"})
        bases = server.service.bases
        assert bases is not None
        writer = bases.writer("a")
        for response in (
            client.post("/v1/kb/a/documents", json={"documents": [{"text": "x"}]}),
            client.request("DELETE", "/v1/kb/a/documents", json={"ids": ["x"]}),
            client.delete("/v1/kb/a"),
        ):
            error_of(response, 429)
            assert int(response.headers["retry-after"]) >= 1
        writer.close()
        filled_now = client.post("/v1/kb/a/documents", json={"documents": [{"text": "x"}]})
        assert filled_now.json()["added"] == 1


def test_clients_at_once_lose_nothing(client: httpx.Client, server: Running) -> None:
    client.post("/v1/kb", json={"name": "six"})
    failures: list[str] = []

    def add(number: int) -> None:
        with server.client() as own:
            for part in range(3):
                documents = [{"id": f"{number}-{part}-{n}", "text": f"{TEXTS[n]} {number}"} for n in range(3)]
                response = own.post("/v1/kb/six/documents", json={"documents": documents})
                found = own.post("/v1/kb/six/search", json={"query": "fox", "top_k": 3})
                if response.status_code != 200 or response.json()["added"] != 3 or found.status_code != 200:
                    failures.append(response.text + found.text)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    listed = client.get("/v1/kb/six/documents", params={"limit": 1000}).json()["data"]
    assert [one["id"] for one in listed] == sorted(f"{a}-{b}-{c}" for a in range(6) for b in range(3) for c in range(3))
    client.delete("/v1/kb/six")


def test_what_was_done_is_counted(client: httpx.Client) -> None:
    def counted() -> list[float]:
        lines = client.get("/metrics").text.splitlines()
        names = ('gritkit_kb_documents_total{outcome="added"}', 'gritkit_kb_searches_total{by="dense"}')
        return [sum(float(one.rsplit(" ", 1)[1]) for one in lines if one.startswith(name)) for name in names]

    added, searches = counted()
    filled(client, "eight", [{"id": "a", "text": "one text"}, {"id": "b", "text": "another"}])
    assert client.post("/v1/kb/eight/search", json={"query": "text"}).status_code == 200
    assert counted() == [added + 2, searches + 1]
    client.delete("/v1/kb/eight")


def test_a_document_of_the_library_is_the_same_document(client: httpx.Client, folder: Path) -> None:
    filled(client, "seven", [{"id": "a", "text": "one text", "metadata": {"x": 1}}])
    with library(folder, "seven") as rag:
        assert rag.add(Document("one text", id="a", metadata={"x": 1})).skipped == 1
        rag.add(Document("from the library", id="b"))
    hits = client.post("/v1/kb/seven/search", json={"query": "library"}).json()["data"]
    assert {hit["id"] for hit in hits} == {"a", "b"}
    client.delete("/v1/kb/seven")
