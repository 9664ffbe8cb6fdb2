"""Chats that are answered from a knowledge base: the library's answers in the OpenAI API's form."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("lancedb")

from gritkit_serve.settings import Settings
from tests.models import grit_model
from tests.serve.knowledge import error_of, events, filled, kb_serving, library
from tests.serve.serving import Running
from tests.serve.test_engine_adapters import adapter

QUESTION = "what does the quick fox do?"
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "who is there?"},
    {"role": "assistant", "content": "a fox"},
]
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chat") / "kbs"


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


def body(**options: Any) -> dict[str, Any]:
    messages = options.pop("messages", [{"role": "user", "content": QUESTION}])
    return {"messages": messages, "kb": "a", "max_tokens": 8, "temperature": 0, **options}


@pytest.mark.parametrize("earlier", [[], TURNS[:1], TURNS[1:], TURNS], ids=["alone", "system", "turns", "both"])
@pytest.mark.parametrize(
    "options",
    [
        {"reuse": "cached"},
        {"reuse": "linked", "link_tokens": 4, "top_k": 2},
        {"reuse": "off", "by": "hybrid", "where": {"mod": 1}},
    ],
    ids=str,
)
def test_a_chat_is_answered_as_the_library_answers(
    client: httpx.Client, folder: Path, earlier: list[dict[str, str]], options: dict[str, Any]
) -> None:
    messages = [*earlier, {"role": "user", "content": QUESTION}]
    reply = client.post(CHAT, json=body(messages=messages, kb={"name": "a", **options})).json()
    with library(folder, "a") as rag:
        answer = rag.ask(QUESTION, **options, earlier=earlier, max_new_tokens=8)
    (choice,) = reply["choices"]
    assert choice["message"] == {"role": "assistant", "content": answer.text, "refusal": None}
    assert choice["finish_reason"] == answer.finish_reason
    assert reply["usage"]["prompt_tokens"] == answer.usage.prompt_tokens
    about = reply["gritkit"]
    assert [(one["id"], one["text"], one["metadata"]) for one in about["sources"]] == [
        (hit.id, hit.text, hit.metadata) for hit in answer.sources
    ]
    assert (about["reuse"], about["reason"], about["recomputed"]) == (answer.reuse, answer.reason, 0)
    assert about["dropped"] == []
    timings = about["timings"]
    assert 0 < timings["search"] < timings["first_token"] <= timings["total"]


def test_a_name_alone_is_enough(client: httpx.Client) -> None:
    short, long = (client.post(CHAT, json=body(kb=kb)).json() for kb in ("a", {"name": "a"}))
    assert short["choices"] == long["choices"]
    assert len(short["gritkit"]["sources"]) == 3
    assert "gritkit" not in client.post(CHAT, json=body(kb=None)).json()


def test_an_ask_and_a_chat_say_the_same(client: httpx.Client) -> None:
    chat = client.post(CHAT, json=body(kb={"name": "a", "reuse": "cached"})).json()
    asked = {"question": QUESTION, "max_tokens": 8, "reuse": "cached"}
    ask = client.post("/v1/kb/a/ask", json=asked).json()
    assert chat["choices"][0]["message"]["content"] == ask["text"]
    assert chat["gritkit"]["sources"] == ask["sources"]


def test_a_stream_begins_with_the_sources_and_ends_with_the_times(client: httpx.Client) -> None:
    options = body(kb={"name": "a", "reuse": "cached"}, stream=True, stream_options={"include_usage": True})
    whole = client.post(CHAT, json=body(kb={"name": "a", "reuse": "cached"})).json()
    with client.stream("POST", CHAT, json=options) as response:
        *chunks, done = [data for _, data in events(response.iter_lines())]
    assert done == "[DONE]"
    *chunks, usage = chunks
    assert usage["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == whole["choices"][0]["message"]["content"]
    first, *between, last = chunks
    assert first["gritkit"] == {name: whole["gritkit"][name] for name in ("sources", "dropped")}
    assert not any("gritkit" in chunk for chunk in between)
    assert set(last["gritkit"]) == {"reuse", "reason", "recomputed", "timings"}
    assert (last["gritkit"]["reuse"], last["choices"][0]["finish_reason"]) == ("cached", "length")


def test_several_answers_and_what_else_a_chat_can_do(client: httpx.Client) -> None:
    several = body(n=3, temperature=1.0, seed=5, logprobs=True, top_logprobs=2)
    reply = client.post(CHAT, json=several).json()
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in reply["choices"]}) > 1
    assert all(len(choice["logprobs"]["content"]) == 8 for choice in reply["choices"])
    assert client.post(CHAT, json=several).json()["choices"] == reply["choices"]


def test_an_answer_without_a_limit_has_the_servers(tmp_path: Path) -> None:
    with kb_serving(tmp_path, settings=Settings(default_max_tokens=5)) as server, server.client() as client:
        filled(client, "a")
        reply = client.post(CHAT, json=body(max_tokens=None, stop=["\x00\x00"])).json()
        assert reply["usage"]["completion_tokens"] == 5
        more = client.post(CHAT, json=body(stop=["\x00\x00"])).json()
        assert more["usage"]["completion_tokens"] == 8


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        ({"kb": "none"}, 404, "no knowledge base 'none'"),
        ({"kb": "../a"}, 400, "the name of a knowledge base"),
        ({"kb": {"name": "a/../a"}}, 404, "no knowledge base"),
        ({"kb": ""}, 400, "the name of a knowledge base"),
        ({"kb": 3}, 400, "kb"),
        ({"kb": ["a"]}, 400, "kb"),
        ({"kb": {}}, 400, "name is missing"),
        ({"kb": {"name": "a", "size": 1}}, 400, "unknown field 'kb.size'"),
        ({"kb": {"name": "a", "top_k": 101}}, 400, "top_k=101 must be at most 100"),
        ({"kb": {"name": "a", "reuse": "magic"}}, 400, "reuse='magic'"),
        ({"messages": [*TURNS[1:]]}, 400, "must end with the user's message"),
        ({"messages": [TURNS[1], {"role": "user", "content": "x"}]}, 400, "out of turn"),
        ({"messages": [{"role": "user", "content": "  "}]}, 400, "the query is empty"),
        ({"messages": TURNS, "kb": {"name": "a", "reuse": "query"}}, 400, "must end with the user's message"),
        ({"messages": [*TURNS[1:], TURNS[1]], "kb": {"name": "a", "reuse": "query"}}, 400, "no place for"),
        ({"max_tokens": 100_000}, 400, "no document fits"),
        ({"kb": {"name": "a", "where": {"mod": 77}}}, 400, "no document suits"),
    ],
)
def test_what_cannot_be_answered_has_a_status(
    client: httpx.Client, stream: bool, options: dict[str, Any], status: int, said: str
) -> None:
    assert said in error_of(client.post(CHAT, json=body(**options, stream=stream)), status)


def test_an_adapter_answers_from_texts_and_not_from_what_another_model_has_read(tmp_path: Path) -> None:
    adapters = {"tuned": adapter(tmp_path / "tuned", 0)}
    with kb_serving(tmp_path / "kbs", of=grit_model("llama"), adapters=adapters) as server, server.client() as client:
        filled(client, "a")
        plain = client.post(CHAT, json=body(kb={"name": "a", "reuse": "off"})).json()
        tuned = client.post(CHAT, json=body(model="tuned")).json()
        assert tuned["gritkit"]["sources"] == plain["gritkit"]["sources"]
        assert tuned["gritkit"]["reuse"] == "off"
        assert tuned["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]
        assert tuned["choices"] != plain["choices"]
        said = error_of(client.post(CHAT, json=body(model="tuned", kb={"name": "a", "reuse": "cached"})), 400)
        assert "use 'off'" in said
