"""/v1/kb/{name}/ask gives the library's answer: whole, streamed, alone and beside many others."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("lancedb")

from gritkit.rag import Answer
from gritkit_serve.settings import Settings
from tests.models import grit_model
from tests.serve.knowledge import DOCUMENTS, error_of, events, filled, kb_serving, library
from tests.serve.serving import PATIENCE_S, Running
from tests.serve.talking import until

QUESTION = "what does the quick fox do?"
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"reuse": "cached"},
    {"reuse": "cached", "join": "text"},
    {"reuse": "linked", "link_tokens": 4},
    {"reuse": "off", "top_k": 2},
    {"reuse": "prefix", "by": "text"},
    {"reuse": "query"},
    {"reuse": "query_doc", "top_k": 1},
    {"reuse": "doc_query"},
    {"by": "hybrid", "where": {"mod": 1}, "top_k": 4},
    {"rerank": True, "temperature": 0.9, "seed": 7, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.1},
    {"stop": ["e"], "max_tokens": 30},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ask") / "kbs"


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    with kb_serving(folder) as running:
        with running.client() as client:
            filled(client, "a")
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def answered(folder: Path, **options: Any) -> Answer:
    """By a library that has not answered before."""
    options["max_new_tokens"] = options.pop("max_tokens", 8)
    with library(folder, "a") as rag:
        return rag.ask(QUESTION, **options)


def body(**options: Any) -> dict[str, Any]:
    return {"question": QUESTION, "max_tokens": 8, **options}


def check_equal(reply: dict[str, Any], answer: Answer) -> None:
    assert reply["text"] == answer.text
    assert [(one["id"], one["chunk"], one["text"], one["metadata"]) for one in reply["sources"]] == [
        (hit.id, hit.chunk, hit.text, hit.metadata) for hit in answer.sources
    ]
    assert [one["score"] for one in reply["sources"]] == pytest.approx([hit.score for hit in answer.sources], abs=1e-5)
    assert reply["dropped"] == []
    assert (reply["finish_reason"], reply["recomputed"]) == (answer.finish_reason, answer.recomputed)
    usage = reply["usage"]
    assert usage["prompt_tokens"] == answer.usage.prompt_tokens
    assert usage["completion_tokens"] == answer.usage.completion_tokens
    assert usage["total_tokens"] == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_an_answer_is_the_librarys(client: httpx.Client, folder: Path, options: dict[str, Any]) -> None:
    reply = client.post("/v1/kb/a/ask", json=body(**options))
    assert reply.status_code == 200, reply.text
    answer = answered(folder, **options)
    check_equal(reply.json(), answer)
    if options.get("reuse") not in (None, "prefix"):  # what these do depends on what was asked before
        assert (reply.json()["reuse"], reply.json()["reason"]) == (answer.reuse, answer.reason)
        assert reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"] >= answer.usage.cached_tokens


def test_a_beginning_that_was_read_before_is_reused_as_in_the_library(client: httpx.Client, folder: Path) -> None:
    options = {"reuse": "prefix", "where": {"mod": 2}, "top_k": 2}
    replies = [client.post("/v1/kb/a/ask", json=body(**options)).json() for _ in range(2)]
    with library(folder, "a") as rag:
        answers = [rag.ask(QUESTION, **options, max_new_tokens=8) for _ in range(2)]
    for reply, answer in zip(replies, answers, strict=True):
        check_equal(reply, answer)
        assert (reply["reuse"], reply["reason"]) == (answer.reuse, answer.reason)
    assert [reply["reuse"] for reply in replies] == ["off", "prefix"]


def test_times_are_milliseconds_of_this_answer(client: httpx.Client) -> None:
    import time

    since = time.perf_counter()
    timings = client.post("/v1/kb/a/ask", json=body()).json()["timings"]
    whole = 1e3 * (time.perf_counter() - since)
    assert set(timings) == {"search", "load", "first_token", "total"}
    assert 0 < timings["search"] < timings["first_token"] <= timings["total"] < whole
    assert timings["search"] + timings["load"] < timings["first_token"]


# -- streams -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", WAYS[1:5], ids=str)
def test_a_stream_says_the_same(client: httpx.Client, options: dict[str, Any]) -> None:
    whole = client.post("/v1/kb/a/ask", json=body(**options)).json()
    with client.stream("POST", "/v1/kb/a/ask", json=body(**options, stream=True)) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        (first, sources), *deltas, (last, reply), done = events(response.iter_lines())
    assert (first, last, done) == ("sources", "answer", ("message", "[DONE]"))
    assert {name for name, _ in deltas} == {"delta"}
    assert "".join(data["text"] for _, data in deltas) == reply["text"] == whole["text"]
    assert sources == {"sources": reply["sources"], "dropped": reply["dropped"]}
    for changing in ("timings", "usage"):  # the second time more is cached
        reply.pop(changing), whole.pop(changing)
    assert reply == whole


def test_sources_are_shown_while_the_answer_waits_for_a_slot(tmp_path: Path) -> None:
    with kb_serving(tmp_path, slots=1) as server, server.client() as one, server.client() as other:
        filled(one, "a")
        request = body(stream=True, max_tokens=300)
        with one.stream("POST", "/v1/kb/a/ask", json=request) as first:
            names = (name for name, _ in events(first.iter_lines()))
            assert [next(names), next(names)] == ["sources", "delta"]
            with other.stream("POST", "/v1/kb/a/ask", json=request) as second:
                said = events(second.iter_lines())  # held: let go, it would end the connection
                assert next(said)[0] == "sources"
                load = server.service.engine.load
                assert until(lambda: (load().running, load().waiting) == (1, 1), PATIENCE_S)  # the first one's slot


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot(folder: Path, tmp_path: Path, stream: bool) -> None:
    with kb_serving(tmp_path / "kbs", slots=1) as server, server.client() as client:
        filled(client, "a")
        engine = server.service.engine
        request = {"question": QUESTION, "max_tokens": 300, "stream": stream}
        with server.client() as other:
            if stream:
                with other.stream("POST", "/v1/kb/a/ask", json=request) as response:
                    assert next(events(response.iter_lines()))[0] == "sources"
            else:
                with pytest.raises(httpx.ReadTimeout):
                    other.post("/v1/kb/a/ask", json=request, timeout=0.05)
        reply = client.post("/v1/kb/a/ask", json=body(), timeout=PATIENCE_S)
        assert reply.status_code == 200
        assert until(lambda: engine.load().running == engine.load().waiting == 0, PATIENCE_S)


# -- many --------------------------------------------------------------------------------------------------------------


def test_many_at_once_get_what_each_gets_alone(server: Running, folder: Path) -> None:
    ways = [way for way in WAYS if way.get("reuse") != "prefix"] * 3
    replies: list[Any] = [None] * len(ways)

    def ask(index: int) -> None:
        with server.client() as own:
            replies[index] = own.post("/v1/kb/a/ask", json=body(**ways[index])).json()

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(ways))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for way, reply in zip(ways, replies, strict=True):
        check_equal(reply, answered(folder, **way))


def test_answers_go_on_while_documents_are_added_and_deleted(server: Running, client: httpx.Client) -> None:
    filled(client, "busy")
    stop = threading.Event()
    wrong: list[str] = []

    def change() -> None:
        with server.client() as own:
            number = 0
            while not stop.is_set():
                number += 1
                documents = [{"id": f"new{n}", "text": f"text {n} of {number}"} for n in range(3)]
                added = own.post("/v1/kb/busy/documents", json={"documents": documents})
                gone = own.request("DELETE", "/v1/kb/busy/documents", json={"ids": ["new1"]})
                if (added.status_code, gone.status_code) != (200, 200):
                    wrong.append(added.text + gone.text)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for number in range(15):
            reply = client.post("/v1/kb/busy/ask", json=body(question=f"{QUESTION} {number}", reuse="cached", top_k=8))
            assert reply.status_code == 200, reply.text
            assert len(reply.json()["sources"]) + len(reply.json()["dropped"]) == 8
    finally:
        stop.set()
        thread.join()
    assert wrong == []
    client.delete("/v1/kb/busy")


# -- what cannot be answered -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"question": ""}, "question=''"),
        ({"question": " "}, "the query is empty"),
        ({"top_k": 101}, "top_k=101 must be at most 100"),
        ({"reuse": "magic"}, "reuse='magic'"),
        ({"reuse": "cached", "link_tokens": 3}, "link_tokens=3"),
        ({"join": "none"}, "join='none'"),
        ({"temperature": -1}, "temperature=-1"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"stop": ["."] * 17}, "stop=[17 items] must be a text, or a list of at most 16"),
        ({"stop": ["x" * 257]}, "a stop text may have at most 256 characters"),
        ({"max_tokens": 10**6}, ": lower max_tokens or shorten the question"),
        ({"where": {"mod": 99}}, "no document suits where="),
        ({"n": 2}, "unknown field 'n'"),
        ({"question": QUESTION * 60}, "the query is longer than the 512 tokens that the model reads: shorten it"),
    ],
)
def test_what_cannot_be_answered_has_a_status(
    client: httpx.Client, stream: bool, options: dict[str, Any], said: str
) -> None:
    assert said in error_of(client.post("/v1/kb/a/ask", json=body(**{**options, "stream": stream})), 400)


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_to_answer_from(client: httpx.Client, stream: bool) -> None:
    assert "no knowledge base" in error_of(client.post("/v1/kb/none/ask", json=body(stream=stream)), 404)
    client.post("/v1/kb", json={"name": "void"})
    response = client.post("/v1/kb/void/ask", json=body(stream=stream))
    assert "empty: add documents" in error_of(response, 400)
    client.delete("/v1/kb/void")


def test_documents_without_room_are_dropped_and_said(tmp_path: Path) -> None:
    with kb_serving(tmp_path, slot_tokens=160) as server, server.client() as client:
        filled(client, "a")
        reply = client.post("/v1/kb/a/ask", json=body(top_k=8)).json()
        assert len(reply["sources"]) + len(reply["dropped"]) == 8
        assert reply["dropped"]
        assert reply["usage"]["prompt_tokens"] + 8 <= 160
        with client.stream("POST", "/v1/kb/a/ask", json=body(top_k=8, stream=True)) as response:
            _, sources = next(events(response.iter_lines()))
        assert (sources["sources"], sources["dropped"]) == (reply["sources"], reply["dropped"])


def test_a_model_that_only_embeds_searches_and_says_that_it_cannot_answer(tmp_path: Path) -> None:
    encoder = grit_model("qwen3", prompt_format="grit")
    encoder.writes = False
    with kb_serving(tmp_path, of=encoder) as server, server.client() as client:
        filled(client, "a", DOCUMENTS[:3])
        assert len(client.post("/v1/kb/a/search", json={"query": "fox"}).json()["data"]) == 3
        assert "no language-model head" in error_of(client.post("/v1/kb/a/ask", json=body()), 400)


def test_a_server_may_look_for_fewer_stop_texts(tmp_path: Path) -> None:
    with kb_serving(tmp_path, settings=Settings(max_stop=2)) as server, server.client() as client:
        filled(client, "a")
        assert client.post("/v1/kb/a/ask", json=body(stop=[".", "!"])).status_code == 200
        response = client.post("/v1/kb/a/ask", json=body(stop=[".", "!", "?"]))
        assert error_of(response, 400) == "stop has 3 texts: give at most 2"


def test_an_answer_without_a_limit_has_the_servers(tmp_path: Path) -> None:
    with kb_serving(tmp_path, settings=Settings(default_max_tokens=5)) as server, server.client() as client:
        filled(client, "a")
        reply = client.post("/v1/kb/a/ask", json={"question": QUESTION}).json()
        assert reply["usage"]["completion_tokens"] <= 5
