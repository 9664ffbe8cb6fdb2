from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gritkit.generation.decoder import Request
from gritkit.generation.params import SamplingParams
from gritkit.model import GritModel
from tests.models import CONTEXT, grit_model
from tests.serve.serving import PATIENCE_S, Running, serving
from tests.serve.talking import asking, post, refused, running, streamed, until

PATH = "/v1/chat/completions"
USER = [{"role": "user", "content": "the quick brown fox"}]
CHAT = [
    {"role": "system", "content": "documents are read once"},
    {"role": "user", "content": "the quick brown fox"},
    {"role": "assistant", "content": "jumps over"},
    {"role": "user", "content": "the lazy dog, naïve café 🦊"},
]


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def model(server: Running) -> GritModel:
    return server.service.model


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("messages", [USER, CHAT])
def test_an_answer_is_the_librarys(client: httpx.Client, model: GritModel, messages: list[dict[str, str]]) -> None:
    expected = model.chat(messages, max_new_tokens=12)
    answer = post(client, PATH, model="tiny", messages=messages, max_tokens=12, temperature=0)
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "tiny"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["created"] > 1_600_000_000
    (choice,) = answer["choices"]
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": expected.text, "refusal": None},
        "logprobs": None,
        "finish_reason": expected.finish_reason,
    }
    usage = answer["usage"]
    assert usage["prompt_tokens"] == expected.usage.prompt_tokens
    assert usage["completion_tokens"] == expected.usage.completion_tokens
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert "gritkit" not in answer


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", 0.2), ("top_p", 0.5), ("top_k", 2), ("min_p", 0.9), ("repetition_penalty", 9.0), ("seed", 8)],
)
def test_every_way_of_sampling_reaches_the_sampler(
    client: httpx.Client, model: GritModel, field: str, value: float
) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "seed": 7, field: value}
    expected = model.chat(USER, max_new_tokens=8, **options)
    answer = post(client, PATH, messages=USER, max_tokens=8, **{k: v for k, v in options.items() if v != 1.0})
    assert answer["choices"][0]["message"]["content"] == expected.text
    assert expected.text != model.chat(USER, max_new_tokens=8, temperature=1.0, seed=7).text


def test_without_a_temperature_it_is_one(client: httpx.Client, model: GritModel) -> None:
    answer = post(client, PATH, messages=USER, max_tokens=8, seed=3)
    assert (
        answer["choices"][0]["message"]["content"] == model.chat(USER, max_new_tokens=8, temperature=1.0, seed=3).text
    )
    nulls = dict.fromkeys(("temperature", "top_p", "top_k", "n", "stop", "logprobs", "top_logprobs", "stream", "kb"))
    again = post(client, PATH, messages=USER, max_tokens=8, seed=3, **nulls)
    assert again["choices"] == answer["choices"]


def test_n_answers_are_those_of_n_seeds(client: httpx.Client, model: GritModel) -> None:
    answer = post(client, PATH, messages=USER, max_tokens=10, n=3, seed=40)
    expected = [model.chat(USER, max_new_tokens=10, temperature=1.0, seed=40 + index) for index in range(3)]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert [choice["message"]["content"] for choice in answer["choices"]] == [one.text for one in expected]
    assert len({one.text for one in expected}) == 3
    assert answer["usage"]["prompt_tokens"] == expected[0].usage.prompt_tokens
    assert answer["usage"]["completion_tokens"] == sum(one.usage.completion_tokens for one in expected)


@pytest.mark.parametrize("as_list", [False, True])
def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(
    client: httpx.Client, model: GritModel, as_list: bool
) -> None:
    whole = model.chat(USER, max_new_tokens=8, temperature=1.0, seed=5).text
    stop = whole[len(whole) // 2 :][:2]
    assert stop
    answer = post(client, PATH, messages=USER, max_tokens=8, seed=5, stop=["never", stop] if as_list else stop)
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == whole[: whole.index(stop)]


def test_content_may_come_in_parts_and_system_be_called_developer(client: httpx.Client, model: GritModel) -> None:
    parts = [{"type": "text", "text": "the quick"}, {"type": "text", "text": "brown fox"}]
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    same = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "the quick\nbrown fox"}]
    answer = post(client, PATH, messages=messages, max_tokens=8, temperature=0)
    assert answer["choices"][0]["message"]["content"] == model.chat(same, max_new_tokens=8).text


def test_an_answer_can_be_sent_back_as_it_came(client: httpx.Client) -> None:
    answer = post(client, PATH, messages=USER, max_tokens=4, temperature=0)["choices"][0]["message"]
    nulls = {"name": None, "tool_calls": None, "function_call": None, "audio": None, "annotations": None}
    post(client, PATH, messages=[*USER, {**answer, **nulls}, *USER], max_tokens=4)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_limit_has_two_names(client: httpx.Client, name: str) -> None:
    answer = post(client, PATH, messages=USER, temperature=0, **{name: 3})
    assert answer["usage"]["completion_tokens"] == 3
    assert answer["choices"][0]["finish_reason"] == "length"


def test_the_context_bounds_the_answer(client: httpx.Client) -> None:
    long = [{"role": "user", "content": "a, b; " * 75}]
    answer = post(client, PATH, messages=long, seed=1, max_tokens=10**9)
    usage = answer["usage"]
    assert 300 < usage["prompt_tokens"] < CONTEXT
    assert answer["choices"][0]["finish_reason"] == "stop" or usage["total_tokens"] == CONTEXT


def test_a_beginning_that_was_computed_before_is_counted_as_cached(client: httpx.Client) -> None:
    first = post(client, PATH, messages=CHAT, max_tokens=4, temperature=0, cache_salt="mine")["usage"]
    assert first["prompt_tokens_details"] == {"cached_tokens": 0}
    again = post(client, PATH, messages=CHAT, max_tokens=4, temperature=0, cache_salt="mine")["usage"]
    assert again["prompt_tokens_details"]["cached_tokens"] > first["prompt_tokens"] / 2
    other = post(client, PATH, messages=CHAT, max_tokens=4, temperature=0, cache_salt="yours")["usage"]
    assert other["prompt_tokens_details"] == {"cached_tokens": 0}


# -- log-probabilities -------------------------------------------------------------------------------------------------


def test_log_probabilities_are_those_of_the_model(client: httpx.Client, model: GritModel) -> None:
    answer = post(client, PATH, messages=USER, max_tokens=8, temperature=0, logprobs=True, top_logprobs=3)
    (choice,) = answer["choices"]
    tokens = choice["logprobs"]["content"]
    assert choice["logprobs"]["refusal"] is None
    assert len(tokens) == 8
    text = b"".join(bytes(token["bytes"]) for token in tokens).decode(errors="replace")
    assert text == choice["message"]["content"]
    for token in tokens:
        assert [top["logprob"] for top in token["top_logprobs"]] == sorted(
            (top["logprob"] for top in token["top_logprobs"]), reverse=True
        )
        assert len(token["top_logprobs"]) == 3
        likeliest = token["top_logprobs"][0]
        assert (token["token"], token["logprob"]) == (likeliest["token"], likeliest["logprob"])  # greedy
        assert token["logprob"] < 0
    request = Request(model.tokens.chat_prompt(USER), SamplingParams(max_new_tokens=8), top_logprobs=3)
    (expected,) = model.generate([request])
    assert [token["logprob"] for token in tokens] == pytest.approx([t.logprob for t in expected.logprobs], abs=1e-5)
    alone = post(client, PATH, messages=USER, max_tokens=8, temperature=0, logprobs=True)
    assert all(token["top_logprobs"] == [] for token in alone["choices"][0]["logprobs"]["content"])


# -- streams -----------------------------------------------------------------------------------------------------------


def test_a_stream_says_what_the_whole_answer_says(client: httpx.Client) -> None:
    options: dict[str, Any] = {"messages": CHAT, "max_tokens": 24, "seed": 6, "logprobs": True, "top_logprobs": 1}
    (choice,) = post(client, PATH, **options)["choices"]
    chunks = streamed(client, PATH, **options)
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert all("usage" not in chunk for chunk in chunks)
    first, *middle, last = [chunk["choices"][0] for chunk in chunks]
    assert first["delta"] == {"role": "assistant", "content": ""}
    assert "".join(one["delta"]["content"] for one in middle) == choice["message"]["content"]
    assert last["delta"] == {}
    assert [one["finish_reason"] for one in (first, *middle)] == [None] * (len(middle) + 1)
    assert last["finish_reason"] == choice["finish_reason"]
    logprobs = [token for one in middle for token in one["logprobs"]["content"]]
    assert [token["bytes"] for token in logprobs] == [token["bytes"] for token in choice["logprobs"]["content"]]
    assert [token["logprob"] for token in logprobs] == pytest.approx(
        [token["logprob"] for token in choice["logprobs"]["content"]], abs=1e-5
    )
    assert len(middle) > 3


def test_the_usage_comes_last_where_it_was_asked_for(client: httpx.Client) -> None:
    options: dict[str, Any] = {"messages": USER, "max_tokens": 5, "seed": 6, "n": 2}
    usage = post(client, PATH, **options)["usage"]
    *chunks, last = streamed(client, PATH, **options, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert last["usage"][name] == usage[name]


def test_n_answers_stream_side_by_side(client: httpx.Client) -> None:
    options: dict[str, Any] = {"messages": USER, "max_tokens": 10, "seed": 12, "n": 3}
    whole = post(client, PATH, **options)["choices"]
    texts, ends = {0: "", 1: "", 2: ""}, {}
    for chunk in streamed(client, PATH, **options):
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
        if choice["finish_reason"]:
            ends[choice["index"]] = choice["finish_reason"]
    assert texts == {choice["index"]: choice["message"]["content"] for choice in whole}
    assert ends == {choice["index"]: choice["finish_reason"] for choice in whole}


def test_what_cannot_begin_has_a_status_also_when_it_was_to_stream(client: httpx.Client) -> None:
    error = refused(client, PATH, 400, messages=[{"role": "user", "content": "a, b; " * 500}], stream=True)
    assert "tokens" in error["message"]
    assert refused(client, PATH, 404, messages=USER, model="other", stream=True)["code"] == "model_not_found"


# -- refusals ----------------------------------------------------------------------------------------------------------

TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


@pytest.mark.parametrize(
    ("field", "value", "advice"),
    [
        ("tools", [TOOL], "calls no tools"),
        ("tool_choice", "required", "calls no tools"),
        ("functions", [{"name": "f"}], "calls no tools"),
        ("function_call", {"name": "f"}, "calls no tools"),
        ("modalities", ["text", "audio"], "writes text alone"),
        ("audio", {"voice": "a", "format": "wav"}, "writes text alone"),
        ("logit_bias", {"50256": -100}, "leave it out"),
        ("presence_penalty", 0.5, "use repetition_penalty"),
        ("frequency_penalty", -0.5, "use repetition_penalty"),
        ("prediction", {"type": "content", "content": "a"}, "leave it out"),
        ("reasoning_effort", "high", "no separate reasoning"),
        ("verbosity", "low", "how long"),
        ("web_search_options", {}, "fetches nothing"),
        ("store", True, "nothing is stored"),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(
    client: httpx.Client, field: str, value: Any, advice: str
) -> None:
    error = refused(client, PATH, 400, messages=USER, max_tokens=1, **{field: value})
    assert error["param"] == field
    assert error["type"] == "invalid_request_error"
    assert "is not supported" in error["message"]
    assert advice in error["message"]


def test_what_changes_nothing_is_accepted(client: httpx.Client) -> None:
    nothing: dict[str, Any] = {
        "tools": None, "tool_choice": "none", "functions": [], "function_call": "auto", "modalities": ["text"],
        "audio": None, "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0, "store": False, "user": "me",
        "metadata": {"a": "b"}, "service_tier": "auto", "safety_identifier": "x", "prompt_cache_key": "y",
        "prompt_cache_retention": "24h", "parallel_tool_calls": True, "reasoning_effort": "none",
        "verbosity": "medium", "response_format": {"type": "text"}, "stream": False, "n": 1,
    }  # fmt: skip
    post(client, PATH, messages=USER, max_tokens=1, **nothing)
    post(client, PATH, messages=USER, max_tokens=1, **dict.fromkeys(nothing))


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"messages": []}, "messages", "at least 1 item"),
        ({}, "messages", "messages is missing"),
        ({"messages": USER, "frequency_penatly": 0}, "frequency_penatly", "unknown field 'frequency_penatly'"),
        ({"messages": USER, "n": 9}, "n", "n=9 must be at most 8"),
        ({"messages": USER, "n": 0}, "n", "greater than or equal to 1"),
        ({"messages": USER, "n": "2"}, "n", "valid integer"),
        ({"messages": USER, "n": 1.5}, "n", "valid integer"),
        ({"messages": USER, "n": True}, "n", "valid integer"),
        ({"messages": USER, "temperature": -0.1}, "temperature", "greater than or equal to 0"),
        ({"messages": USER, "temperature": 101}, "temperature", "less than or equal to 100"),
        ({"messages": USER, "top_p": 0}, "top_p", "greater than 0"),
        ({"messages": USER, "max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"messages": USER, "max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "differ"),
        ({"messages": USER, "stop": ["a"] * 17}, "stop", "at most 16"),
        ({"messages": USER, "stop": ""}, "stop", "none of them empty"),
        ({"messages": USER, "stop": "a" * 257}, "stop", "at most 256 characters"),
        ({"messages": USER, "seed": 2**63}, "seed", "less than"),
        ({"messages": USER, "top_logprobs": 2}, "top_logprobs", "needs logprobs=true"),
        ({"messages": USER, "logprobs": True, "top_logprobs": 21}, "top_logprobs", "at most 20"),
        ({"messages": USER, "stream_options": {"include_usage": True}}, "stream_options", "needs stream=true"),
        ({"messages": USER, "response_format": {"type": "xml"}}, "response_format", "'text', 'json_object'"),
        ({"messages": USER, "kb": "Not A Name"}, "kb", "the name of a knowledge base"),
        ({"messages": USER, "kb": "handbook"}, None, "--kb"),
        ({"messages": USER * 1025}, "messages", "at most 1024"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "is missing"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "valid string"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role", "'system', 'developer'"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role", "calls no tools"),
        ({"messages": [{**USER[0], "name": "Ann"}]}, "messages[0].name", "put the name into the content"),
        ({"messages": [{**USER[0], "tool_calls": [TOOL]}]}, "messages[0].tool_calls", "calls no tools"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a/b"}}]}]},
            "messages[0].content[0].type",
            "'image_url' is not supported: this model reads text alone",
        ),
        ({"messages": [{"role": "assistant", "content": "a"}]}, None, "user first"),
        ({"messages": [*USER, *USER]}, None, "out of turn"),
    ],
)
def test_a_request_that_makes_no_sense_is_told_why(
    client: httpx.Client, body: dict[str, Any], param: str | None, said: str
) -> None:
    error = refused(client, PATH, 404 if said == "--kb" else 400, **body)
    assert error["param"] == param
    assert said in error["message"]


def test_an_unknown_model_is_named_with_those_there_are(client: httpx.Client) -> None:
    error = refused(client, PATH, 404, messages=USER, model="gpt-4o")
    assert error["message"] == "no model 'gpt-4o' here: this server has tiny"
    assert (error["type"], error["param"], error["code"]) == ("not_found_error", "model", "model_not_found")


def test_a_full_queue_is_told_when_to_come_again() -> None:
    endless = {"messages": USER, "max_tokens": 400, "temperature": 0}
    model = grit_model("llama", prompt_format="grit")
    with serving(model, slots=1, waiting_generations=2) as server, server.client() as client:
        load = server.service.engine.load
        with asking(server, PATH, endless):
            assert until(lambda: running(server), PATIENCE_S)
            with asking(server, PATH, endless):
                assert until(lambda: load().waiting == 1, PATIENCE_S)
                response = client.post(PATH, json={**endless, "n": 2})  # there is room for one of them
                assert response.status_code == 429
                assert int(response.headers["retry-after"]) >= 1
                assert response.json()["error"]["type"] == "rate_limit_error"
                assert until(lambda: load().waiting == 1, PATIENCE_S)  # that one was let go
        # What could never be taken is no question of time.
        assert "ask for at most 2 at once" in refused(client, PATH, 400, **endless, n=3)["message"]


def test_a_model_without_a_chat_format_says_so() -> None:
    with serving(grit_model("llama", prompt_format="plain")) as server, server.client() as client:
        assert "no chat template" in refused(client, PATH, 400, messages=USER)["message"]
