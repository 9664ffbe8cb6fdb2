from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gritkit.model import GritModel
from gritkit_serve.settings import Settings
from tests.models import TEXTS, grit_model
from tests.serve.serving import Running, serving
from tests.serve.talking import post, refused

PATH = "/v1/rerank"
QUERY = "what does the fox jump over"


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def model(server: Running) -> GritModel:
    return server.service.model


def scores(answer: Any) -> list[tuple[int, float]]:
    return [(one["index"], one["relevance_score"]) for one in answer["results"]]


def same(given: list[tuple[int, float]], expected: list[tuple[int, float]]) -> bool:
    return [i for i, _ in given] == [i for i, _ in expected] and [s for _, s in given] == pytest.approx(
        [s for _, s in expected], abs=1e-6
    )


@pytest.mark.parametrize("options", [{}, {"method": "likelihood"}])
def test_the_likelihood_is_the_librarys(client: httpx.Client, model: GritModel, options: dict[str, Any]) -> None:
    answer = post(client, PATH, model="tiny", query=QUERY, documents=list(TEXTS), **options)
    assert same(scores(answer), [(one.index, one.score) for one in model.rerank(QUERY, TEXTS)])
    assert all("document" not in one for one in answer["results"])
    assert answer["model"] == "tiny"
    num_tokens = sum(map(len, model.tokens.to_score(QUERY, TEXTS, 512, truncate=False)))
    assert answer["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}


def test_by_embedding_it_is_the_cosine(client: httpx.Client, model: GritModel) -> None:
    answer = post(client, PATH, query=QUERY, documents=list(TEXTS), method="embedding", instruction="find it")
    cosines = model.embed(TEXTS) @ model.embed(QUERY, role="query", instruction="find it")
    assert same(scores(answer), sorted(enumerate(cosines.tolist()), key=lambda one: -one[1]))


def test_only_the_best_and_with_their_texts(client: httpx.Client, model: GritModel) -> None:
    documents = [TEXTS[0], {"text": TEXTS[1]}, TEXTS[2]]
    answer = post(client, PATH, query=QUERY, documents=documents, top_n=2, return_documents=True)
    best = model.rerank(QUERY, TEXTS[:3], top_n=2)
    assert [one["index"] for one in answer["results"]] == [one.index for one in best]
    assert [one["document"] for one in answer["results"]] == [{"text": TEXTS[one.index]} for one in best]
    assert len(post(client, PATH, query=QUERY, documents=documents, top_n=99)["results"]) == 3


def test_equal_documents_keep_their_order(client: httpx.Client) -> None:
    answer = post(client, PATH, query=QUERY, documents=["a", "a", "a"])
    assert [one["index"] for one in answer["results"]] == [0, 1, 2]


@pytest.mark.parametrize("method", ["likelihood", "embedding"])
def test_documents_can_be_cut_after_so_many_tokens(client: httpx.Client, method: str) -> None:
    documents = ["the quick brown fox", "naïve 🦊🦊🦊 café and more", "a"]
    cut = []
    for document in documents:
        ids = post(client, "/tokenize", text=document, add_special_tokens=False)["ids"][:5]
        # A character that was cut in two is left out.
        cut.append(post(client, "/detokenize", ids=ids)["text"].rstrip("\N{REPLACEMENT CHARACTER}"))
    given = scores(post(client, PATH, query=QUERY, documents=documents, max_tokens_per_doc=5, method=method))
    expected = scores(post(client, PATH, query=QUERY, documents=cut, method=method))
    assert same(given, expected)
    assert cut[0] != documents[0]


@pytest.mark.parametrize("method", ["likelihood", "embedding"])
def test_a_document_that_is_too_long_is_refused_or_cut_when_asked(client: httpx.Client, method: str) -> None:
    documents = ["a", "a, b; " * 200]
    error = refused(client, PATH, 400, query=QUERY, documents=documents, method=method)
    assert error["message"].startswith(("document 1", "text 1"))
    for options in ({"truncate": True}, {"max_tokens_per_doc": 100}):
        assert len(post(client, PATH, query=QUERY, documents=documents, method=method, **options)["results"]) == 2


def test_what_is_too_long_is_told_what_can_be_done(client: httpx.Client) -> None:
    long = "a, b; " * 200
    document = refused(client, PATH, 400, query=QUERY, documents=["a", long], method="likelihood")
    assert document["message"].endswith("the context is 512: shorten the document or send truncate: true")
    query = refused(client, PATH, 400, query=long, documents=["a"], method="likelihood", truncate=True)
    assert query["message"].endswith(": shorten the query")


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"query": QUERY}, "documents", "is missing"),
        ({"query": QUERY, "documents": []}, "documents", "at least 1 item"),
        ({"query": QUERY, "documents": ["a"] * 1025}, "documents", "at most 1024"),
        ({"query": QUERY, "documents": ["a", 1]}, "documents[1]", 'must be a text or {"text": ...}'),
        ({"query": QUERY, "documents": [{"title": "a"}]}, "documents[0]", 'must be a text or {"text": ...}'),
        ({"query": " ", "documents": ["a"]}, None, "the query is empty"),
        ({"query": QUERY, "documents": ["a", ""]}, None, "document 1 is empty"),
        ({"query": QUERY, "documents": ["a"], "top_n": 0}, "top_n", "greater than or equal to 1"),
        ({"query": QUERY, "documents": ["a"], "method": "magic"}, "method", "'likelihood' or 'embedding'"),
        ({"query": QUERY, "documents": ["a"], "instruction": "b"}, "instruction", "needs method='embedding'"),
        ({"query": QUERY, "documents": ["a"], "rank_fields": ["b"]}, "rank_fields", "unknown field"),
    ],
)
def test_a_request_that_makes_no_sense_is_told_why(
    client: httpx.Client, body: dict[str, Any], param: str | None, said: str
) -> None:
    error = refused(client, PATH, 400, **body)
    assert error["param"] == param
    assert said in error["message"]


def test_an_unknown_model_is_refused(client: httpx.Client) -> None:
    assert refused(client, PATH, 404, query=QUERY, documents=["a"], model="rerank-v3.5")["code"] == "model_not_found"


def test_the_tokens_of_one_request_are_bounded() -> None:
    with serving(grit_model("llama"), settings=Settings(max_input_tokens=100)) as server, server.client() as client:
        for method in ("likelihood", "embedding"):
            error = refused(client, PATH, 400, query=QUERY, documents=list(TEXTS) * 9, method=method)
            assert error["message"].endswith("send at most 100 at once")
