from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.models import CONTEXT, TEXTS
from tests.serve.serving import Running

LARGE = "x " * (1 << 20)
"""Some 2,000,000 tokens: more than a gigabyte while a tokenizer is at it."""


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.mark.parametrize(
    ("route", "body", "param", "says"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": LARGE}]}, "messages", f"{CONTEXT} tokens"),
        ("/v1/completions", {"prompt": ["a", LARGE]}, "prompt[1]", f"{CONTEXT} tokens"),
        ("/tokenize", {"text": LARGE}, "text", "300000 tokens"),
        ("/tokenize", {"messages": [{"role": "user", "content": LARGE}]}, "messages", "300000 tokens"),
    ],
)
def test_what_is_far_too_long_is_refused_by_its_characters(
    client: httpx.Client, route: str, body: dict[str, Any], param: str, says: str
) -> None:
    answer = client.post(route, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert f"{param} has {len(LARGE)} characters, which are more than {says}" in error["message"]


def test_texts_to_embed_and_to_rank_are_refused_or_cut(client: httpx.Client) -> None:
    answer = client.post("/v1/embeddings", json={"input": ["a", LARGE]})
    assert (answer.status_code, "text 1 is more than 512 tokens" in answer.text) == (400, True)
    answer = client.post("/v1/rerank", json={"query": "a", "documents": ["b", LARGE]})
    assert (answer.status_code, "document 1 and the query are more than 512 tokens" in answer.text) == (400, True)
    for more in ({"max_tokens_per_doc": 20}, {"truncate": True}):
        answer = client.post("/v1/rerank", json={"query": "a", "documents": ["b", LARGE, TEXTS[0]], **more})
        assert (answer.status_code, len(answer.json()["results"])) == (200, 3)
    cut = client.post("/v1/embeddings", json={"input": [LARGE, "x " * 1000], "truncate": True}).json()["data"]
    assert cut[0]["embedding"] == pytest.approx(cut[1]["embedding"], abs=1e-5)


def test_a_large_text_that_is_not_too_long_is_taken(client: httpx.Client) -> None:
    text = "the quick brown fox jumps over the lazy dog " * 2000
    answer = client.post("/tokenize", json={"text": text})
    assert len(text) > 1 << 16
    assert (answer.status_code, answer.json()["count"] > 10_000) == (200, True)
