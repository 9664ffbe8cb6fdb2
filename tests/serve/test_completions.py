from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gritkit.model import GritModel
from gritkit_serve.settings import Settings
from tests.models import grit_model
from tests.serve.serving import Running, serving
from tests.serve.talking import post, refused, streamed

PATH = "/v1/completions"
PROMPTS = ["the quick brown fox", "documents are read"]


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def model(server: Running) -> GritModel:
    return server.service.model


def test_what_continues_a_prompt_is_the_librarys(client: httpx.Client, model: GritModel) -> None:
    expected = model.complete(PROMPTS[0], max_new_tokens=8)
    answer = post(client, PATH, model="tiny", prompt=PROMPTS[0], max_tokens=8, temperature=0)
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["choices"] == [
        {"index": 0, "text": expected.text, "logprobs": None, "finish_reason": expected.finish_reason}
    ]
    assert answer["usage"]["prompt_tokens"] == expected.usage.prompt_tokens


def test_sixteen_tokens_unless_told_otherwise(client: httpx.Client) -> None:
    answer = post(client, PATH, prompt=PROMPTS[0], temperature=0, stop=["\x00\x00"])
    assert answer["usage"]["completion_tokens"] == 16
    assert answer["choices"][0]["finish_reason"] == "length"


def test_the_server_may_be_set_to_fewer() -> None:
    with serving(grit_model("qwen3"), settings=Settings(default_max_tokens=5)) as short, short.client() as client:
        assert post(client, PATH, prompt=PROMPTS[0], stop=["\x00\x00"])["usage"]["completion_tokens"] == 5
        more = post(client, PATH, prompt=PROMPTS[0], stop=["\x00\x00"], max_tokens=8)
    assert more["usage"]["completion_tokens"] == 8


def test_answers_stand_in_the_order_of_their_prompts(client: httpx.Client, model: GritModel) -> None:
    answer = post(client, PATH, prompt=PROMPTS, n=2, seed=4, max_tokens=6)
    expected = [
        model.complete(prompt, max_new_tokens=6, temperature=1.0, seed=seed) for prompt in PROMPTS for seed in (4, 5)
    ]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in answer["choices"]] == [one.text for one in expected]
    usage = answer["usage"]
    assert usage["prompt_tokens"] == sum(one.usage.prompt_tokens for one in expected[::2])  # each prompt once
    assert usage["completion_tokens"] == sum(one.usage.completion_tokens for one in expected)


def test_token_ids_that_are_said_to_be_ours_are_a_prompt_as_it_is(client: httpx.Client, model: GritModel) -> None:
    ids = [model.tokens.raw_prompt(prompt) for prompt in PROMPTS]
    options: dict[str, Any] = {"max_tokens": 6, "temperature": 0}
    texts = [choice["text"] for choice in post(client, PATH, prompt=PROMPTS, **options)["choices"]]
    one = post(client, PATH, prompt=ids[0], token_ids=True, **options)
    assert [choice["text"] for choice in one["choices"]] == texts[:1]
    both = post(client, PATH, prompt=ids, token_ids=True, **options)
    assert [choice["text"] for choice in both["choices"]] == texts


def test_a_stream_says_what_the_whole_answer_says(client: httpx.Client) -> None:
    options: dict[str, Any] = {"prompt": PROMPTS, "max_tokens": 8, "seed": 3, "logprobs": 1}
    whole = post(client, PATH, **options)
    *chunks, last = streamed(client, PATH, **options, stream_options={"include_usage": True})
    texts, tokens, offsets, ends = ["", ""], [[], []], [[], []], ["", ""]
    for chunk in chunks:
        assert chunk["object"] == "text_completion"
        assert chunk["usage"] is None
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["text"]
        if choice["logprobs"]:
            tokens[choice["index"]] += choice["logprobs"]["tokens"]
            offsets[choice["index"]] += choice["logprobs"]["text_offset"]
        ends[choice["index"]] = choice["finish_reason"] or ""
    assert texts == [choice["text"] for choice in whole["choices"]]
    assert tokens == [choice["logprobs"]["tokens"] for choice in whole["choices"]]
    assert offsets == [choice["logprobs"]["text_offset"] for choice in whole["choices"]]
    assert ends == [choice["finish_reason"] for choice in whole["choices"]]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert all("usage" not in chunk for chunk in streamed(client, PATH, **options))


def test_log_probabilities_come_in_lists(client: httpx.Client) -> None:
    (choice,) = post(client, PATH, prompt=PROMPTS[0], max_tokens=12, seed=2, logprobs=2)["choices"]
    logprobs = choice["logprobs"]
    assert {len(column) for column in logprobs.values()} == {12}
    for token, value, top, offset in zip(*(logprobs[name] for name in (
        "tokens", "token_logprobs", "top_logprobs", "text_offset"
    )), strict=True):  # fmt: skip
        assert top[token] == value
        assert 2 <= len(top) <= 3
        if not token.startswith("bytes:"):
            assert choice["text"][offset:].startswith(token)
    (none,) = post(client, PATH, prompt=PROMPTS[0], max_tokens=2, seed=2, logprobs=0)["choices"]
    assert [list(top) for top in none["logprobs"]["top_logprobs"]] == [[t] for t in none["logprobs"]["tokens"]]


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"prompt": PROMPTS, "best_of": 2}, "best_of", "use n"),
        ({"prompt": PROMPTS, "echo": True}, "echo", "put the prompt before the answer"),
        ({"prompt": PROMPTS, "suffix": "end"}, "suffix", "does not fill gaps"),
        ({"prompt": PROMPTS, "logit_bias": {"1": 1}}, "logit_bias", "is not supported"),
        ({"prompt": PROMPTS, "messages": []}, "messages", "unknown field"),
        ({"prompt": []}, "prompt", "none of them empty"),
        ({"prompt": [[]]}, "prompt", "none of them empty"),
        ({"prompt": None}, "prompt", "must be a text, a list of texts, a list of token ids"),
        ({"prompt": ["a", 1]}, "prompt", "must be a text"),
        ({"prompt": ["a"] * 2049}, "prompt", "at most 2048"),
        ({"prompt": "a", "token_ids": True}, "prompt", "holds text"),
        ({"prompt": [5, 6]}, "prompt", "ids from /tokenize together with token_ids=true"),
        ({"prompt": [5, 320], "token_ids": True}, "prompt[0]", "prompt[0][1]=320 is no token of this tokenizer"),
        ({"prompt": "a", "logprobs": 21}, "logprobs", "at most 20"),
        ({"prompt": "a", "logprobs": True}, "logprobs", "valid integer"),
        ({"prompt": "a", "stream_options": {}}, "stream_options", "needs stream=true"),
        ({"prompt": "a, b; " * 500}, None, "tokens"),
    ],
)
def test_a_request_that_makes_no_sense_is_told_why(
    client: httpx.Client, body: dict[str, Any], param: str | None, said: str
) -> None:
    error = refused(client, PATH, 400, **body)
    assert error["param"] == param
    assert said in error["message"]


def test_what_asks_for_nothing_is_accepted(client: httpx.Client) -> None:
    post(client, PATH, prompt="a", max_tokens=1, best_of=1, echo=False, suffix="", user="me")
    post(client, PATH, prompt="", max_tokens=1)  # the tokenizer's beginning alone


def test_an_unknown_model_is_refused(client: httpx.Client) -> None:
    assert refused(client, PATH, 404, prompt="a", model="davinci")["code"] == "model_not_found"
