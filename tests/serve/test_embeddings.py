from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from gritkit.model import GritModel
from gritkit.prompts import TASKS
from gritkit_serve.settings import Settings
from tests.models import TEXTS, grit_model
from tests.serve.serving import Running, serving
from tests.serve.talking import post, refused

PATH = "/v1/embeddings"


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def model(server: Running) -> GritModel:
    return server.service.model


def vectors(answer: Any) -> np.ndarray[Any, Any]:
    assert [one["index"] for one in answer["data"]] == list(range(len(answer["data"])))
    assert {one["object"] for one in answer["data"]} == {"embedding"}
    return np.array([one["embedding"] for one in answer["data"]], dtype=np.float32)


def test_vectors_are_the_librarys(client: httpx.Client, model: GritModel) -> None:
    answer = post(client, PATH, model="tiny", input=list(TEXTS))
    assert (answer["object"], answer["model"]) == ("list", "tiny")
    np.testing.assert_allclose(vectors(answer), model.embed(TEXTS), atol=2e-6)
    num_tokens = sum(map(len, model.tokens.to_embed(TEXTS, "passage", None, 512, truncate=False)))
    assert answer["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    assert "gritkit" not in answer
    one = post(client, PATH, input=TEXTS[0])
    np.testing.assert_allclose(vectors(one), model.embed(TEXTS[:1]), atol=2e-6)


def test_base64_is_that_of_little_endian_float32(client: httpx.Client) -> None:
    floats = vectors(post(client, PATH, input=list(TEXTS), encoding_format="float"))
    coded = post(client, PATH, input=list(TEXTS), encoding_format="base64")["data"]
    decoded = [np.frombuffer(base64.b64decode(one["embedding"], validate=True), dtype="<f4") for one in coded]
    np.testing.assert_allclose(np.stack(decoded), floats, atol=2e-6)
    assert [one["index"] for one in coded] == list(range(len(TEXTS)))


def test_fewer_dimensions_are_normalised_and_noted(client: httpx.Client, model: GritModel) -> None:
    answer = post(client, PATH, input=list(TEXTS), dimensions=8)
    np.testing.assert_allclose(vectors(answer), model.embed(TEXTS, dim=8), atol=2e-6)
    assert answer["gritkit"]["notes"] == [
        "the vectors were cut to 8 dimensions, and this model was not trained to be cut"
    ]
    assert "gritkit" not in post(client, PATH, input="a", dimensions=model.dim)


def test_a_model_that_was_trained_to_be_cut_needs_no_note() -> None:
    with serving(grit_model("llama", matryoshka_dims=(8, 16))) as server, server.client() as client:
        assert "gritkit" not in post(client, PATH, input="a", dimensions=8)
        (note,) = post(client, PATH, input="a", dimensions=9)["gritkit"]["notes"]
        assert note.endswith("was trained to be cut to 8, 16")


@pytest.mark.parametrize("side", ["query", "passage"])
def test_an_instruction_and_a_side_reach_the_prompt(client: httpx.Client, model: GritModel, side: Any) -> None:
    answer = post(client, PATH, input=list(TEXTS), input_type=side, instruction="find it")
    np.testing.assert_allclose(vectors(answer), model.embed(TEXTS, role=side, instruction="find it"), atol=2e-6)
    assert np.abs(vectors(answer) - model.embed(TEXTS, role=side)).max() > 1e-2


def test_sides_differ_where_the_format_says_so() -> None:
    with serving(grit_model("llama", prompt_format="e5")) as server, server.client() as client:
        model = server.service.model
        for side in ("query", "passage"):
            answer = post(client, PATH, input=TEXTS[0], input_type=side)
            np.testing.assert_allclose(vectors(answer)[0], model.embed(TEXTS[0], role=side), atol=2e-6)  # type: ignore[arg-type]
        np.testing.assert_allclose(vectors(post(client, PATH, input=TEXTS[0]))[0], model.embed(TEXTS[0]), atol=2e-6)
        error = refused(client, PATH, 400, input="a", instruction="find it")
        assert "'e5' has no place for an instruction" in error["message"]


def test_tasks_are_instructions(client: httpx.Client, model: GritModel) -> None:
    for name, task in TASKS.items():
        sides: list[Any] = ["query", "passage"] if task.two_sided else [None]
        for side in sides:
            answer = post(client, PATH, input=list(TEXTS), task=name, input_type=side)
            instruction = None if side == "passage" else task.instruction
            expected = model.embed(TEXTS, role=side or "query", instruction=instruction)
            np.testing.assert_allclose(vectors(answer), expected, atol=2e-6)


def test_token_ids_of_a_text_give_its_vector(client: httpx.Client) -> None:
    ids = [post(client, "/tokenize", text=text, add_special_tokens=False)["ids"] for text in TEXTS]
    for options in ({}, {"instruction": "find it", "input_type": "query"}):
        expected = vectors(post(client, PATH, input=list(TEXTS), **options))
        given = vectors(post(client, PATH, input=ids, token_ids=True, **options))
        np.testing.assert_allclose(given, expected, atol=2e-6)
        np.testing.assert_allclose(
            vectors(post(client, PATH, input=ids[0], token_ids=True, **options)), expected[:1], atol=2e-6
        )


def test_a_text_that_is_too_long_is_refused_or_cut_when_asked(client: httpx.Client, model: GritModel) -> None:
    texts = ["a", "a, b; " * 200]
    error = refused(client, PATH, 400, input=texts)
    assert error["message"].startswith("text 1 is ")
    assert error["message"].endswith("max_length is 512: split the text, or send truncate: true")
    assert error["param"] == "input"
    ids = [model.tokens.encode(text) for text in texts]
    assert refused(client, PATH, 400, input=ids, token_ids=True) == error
    answer = post(client, PATH, input=texts, truncate=True)
    np.testing.assert_allclose(vectors(answer), model.embed(texts, truncate=True), atol=2e-6)


def test_what_clients_routinely_send_is_accepted(client: httpx.Client) -> None:
    nothing = {"user": "me", "dimensions": None, "encoding_format": None, "instruction": None, "task": None}
    post(client, PATH, input="a", **nothing)


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({}, "input", "input is missing"),
        ({"input": []}, "input", "none of them empty"),
        ({"input": ""}, None, "text 0 is empty"),
        ({"input": ["a", " "]}, None, "text 1 is empty"),
        ({"input": ["a"] * 2049}, "input", "at most 2048"),
        ({"input": ["a", ["b"]]}, "input", "must be a text, a list of texts, a list of token ids"),
        ({"input": [[9906, 1917]]}, "input", "OpenAIEmbeddings(check_embedding_ctx_length=False)"),
        ({"input": [9906, 1917]}, "input", "OpenAIEmbeddings(check_embedding_ctx_length=False)"),
        ({"input": [[5], [320]], "token_ids": True}, "input[1]", "input[1][0]=320 is no token"),
        ({"input": [[5], [-1]], "token_ids": True}, "input", "must be a text"),
        ({"input": "a", "token_ids": True}, "input", "holds text"),
        ({"input": "a", "dimensions": 33}, "dimensions", "between 1 and 32"),
        ({"input": "a", "dimensions": 0}, "dimensions", "greater than or equal to 1"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "'float' or 'base64'"),
        ({"input": "a", "input_type": "document"}, "input_type", "'query' or 'passage'"),
        ({"input": "a", "task": "retrieval"}, "input_type", "needs input_type"),
        ({"input": "a", "task": "clustering", "input_type": "query"}, "input_type", "leave input_type out"),
        ({"input": "a", "task": "clustering", "instruction": "b"}, "task", "give one of them"),
        ({"input": "a", "task": "dancing"}, "task", "'retrieval', 'similarity'"),
        ({"input": "a", "prompt": "b"}, "prompt", "unknown field 'prompt'"),
    ],
)
def test_a_request_that_makes_no_sense_is_told_why(
    client: httpx.Client, body: dict[str, Any], param: str | None, said: str
) -> None:
    error = refused(client, PATH, 400, **body)
    assert error["param"] == param
    assert said in error["message"]


def test_an_unknown_model_is_refused(client: httpx.Client) -> None:
    assert refused(client, PATH, 404, input="a", model="text-embedding-ada-002")["code"] == "model_not_found"


def test_the_tokens_of_one_request_are_bounded() -> None:
    with (
        serving(grit_model("llama"), settings=Settings(max_input_tokens=100)) as server,
        server.client() as client,
    ):
        error = refused(client, PATH, 400, input=list(TEXTS) * 10)
        assert error["param"] == "input"
        assert error["message"].endswith("send at most 100 at once")
