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

USER = [{"role": "user", "content": TEXTS[0]}]


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def model(server: Running) -> GritModel:
    return server.service.model


@pytest.mark.parametrize("text", [*TEXTS, "", "</s> is text"])
def test_a_text_gets_the_tokens_of_a_prompt(client: httpx.Client, model: GritModel, text: str) -> None:
    answer = post(client, "/tokenize", text=text)
    assert answer["ids"] == model.tokens.raw_prompt(text)
    assert answer["count"] == len(answer["ids"]) == len(answer["tokens"])
    assert answer["tokens"][0] == "<s>"
    bare = post(client, "/tokenize", model="tiny", text=text, add_special_tokens=False)
    assert bare["ids"] == model.tokens.encode(text) == answer["ids"][1:]
    assert bare["tokens"] == answer["tokens"][1:]


def test_a_conversation_gets_the_tokens_that_chat_counts(client: httpx.Client, model: GritModel) -> None:
    answer = post(client, "/tokenize", messages=USER)
    assert answer["ids"] == model.tokens.chat_prompt(USER)
    usage = post(client, "/v1/chat/completions", messages=USER, max_tokens=1)["usage"]
    assert usage["prompt_tokens"] == answer["count"]


@pytest.mark.parametrize("text", TEXTS)
def test_there_and_back(client: httpx.Client, text: str) -> None:
    ids = post(client, "/tokenize", text=text)["ids"]
    assert post(client, "/detokenize", ids=ids)["text"] == f"<s>{text}"
    assert post(client, "/detokenize", ids=ids[1:])["text"] == text


@pytest.mark.parametrize(
    ("path", "body", "param", "said"),
    [
        ("/tokenize", {}, "text", "either text or messages"),
        ("/tokenize", {"text": "a", "messages": USER}, "text", "either text or messages"),
        ("/tokenize", {"messages": USER, "add_special_tokens": False}, "add_special_tokens", "goes with text alone"),
        ("/tokenize", {"messages": []}, "messages", "at least 1 item"),
        ("/tokenize", {"messages": USER * 1025}, "messages", "at most 1024"),
        ("/tokenize", {"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role", "calls no tools"),
        ("/tokenize", {"text": 5}, "text", "valid string"),
        ("/tokenize", {"prompt": "a"}, "prompt", "unknown field"),
        ("/detokenize", {"ids": [5, 320]}, "ids", "ids[1]=320 is no token of this tokenizer, which has 320"),
        ("/detokenize", {"ids": [-1]}, "ids[0]", "greater than or equal to 0"),
        ("/detokenize", {"ids": []}, "ids", "at least 1 item"),
    ],
)
def test_a_request_that_makes_no_sense_is_told_why(
    client: httpx.Client, path: str, body: dict[str, Any], param: str, said: str
) -> None:
    error = refused(client, path, 400, **body)
    assert error["param"] == param
    assert said in error["message"]


def test_an_unknown_model_is_refused(client: httpx.Client) -> None:
    assert refused(client, "/tokenize", 404, text="a", model="b")["code"] == "model_not_found"
    assert refused(client, "/detokenize", 404, ids=[5], model="b")["code"] == "model_not_found"


def test_the_tokens_of_one_request_are_bounded() -> None:
    few = Settings(max_input_tokens=10)
    with serving(grit_model("llama", prompt_format="grit"), settings=few) as server, server.client() as client:
        assert post(client, "/tokenize", text="a, b")["count"] <= 10
        for path, body in (
            ("/tokenize", {"text": "a, b; " * 9}),
            ("/tokenize", {"messages": USER}),
            ("/detokenize", {"ids": [5] * 11}),
        ):
            error = refused(client, path, 400, **body)
            assert error["param"] == next(iter(body))
            assert error["message"].endswith("send at most 10 at once")
