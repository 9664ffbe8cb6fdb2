from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest

from tests.serve.serving import Running
from tests.serve.talking import post, refused, streamed
from tests.serve.test_json_schemas import nested

PATH = "/v1/chat/completions"
USER = [{"role": "user", "content": "the quick brown fox"}]
SHORT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["fox", "dog"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "age", "kind", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def schema(definition: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "thing", "schema": definition, **more}}


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_answers_obey_the_schema(client: httpx.Client, temperature: float) -> None:
    answer = post(
        client, PATH, messages=USER, max_tokens=200, temperature=temperature, seed=1, n=3,
        response_format=schema(SHORT, strict=True, description="a thing"),
    )  # fmt: skip
    for choice in answer["choices"]:
        assert choice["finish_reason"] == "stop"
        jsonschema.validate(json.loads(choice["message"]["content"]), SHORT)


def test_a_stream_obeys_the_schema(client: httpx.Client) -> None:
    options: dict[str, Any] = {"messages": USER, "max_tokens": 200, "seed": 4, "response_format": schema(SHORT)}
    whole = post(client, PATH, **options)["choices"][0]["message"]["content"]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in streamed(client, PATH, **options))
    assert text == whole
    jsonschema.validate(json.loads(text), SHORT)


def test_any_object_begins_as_one(client: httpx.Client) -> None:
    """A random model never ends it; what it has written is the beginning of an object."""
    answer = post(client, PATH, messages=USER, max_tokens=30, temperature=0, response_format={"type": "json_object"})
    text = answer["choices"][0]["message"]["content"]
    assert text.startswith("{")
    if answer["choices"][0]["finish_reason"] == "stop":
        assert isinstance(json.loads(text), dict)


def test_log_probabilities_of_constrained_tokens_are_numbers(client: httpx.Client) -> None:
    answer = post(
        client, PATH, messages=USER, max_tokens=200, seed=1, logprobs=True, top_logprobs=2,
        response_format=schema({"enum": ["fox"]}),
    )  # fmt: skip
    (choice,) = answer["choices"]
    assert json.loads(choice["message"]["content"]) == "fox"
    assert all(token["logprob"] < 0 for token in choice["logprobs"]["content"])


@pytest.mark.parametrize(
    ("response_format", "param", "said"),
    [
        ({"type": "json_schema"}, "response_format.json_schema", "is missing"),
        ({"type": "json_schema", "json_schema": {"name": "a"}}, "response_format.json_schema.schema", "is missing"),
        (schema({"type": "string"}, foo=1), "response_format.json_schema.foo", "unknown field"),
        (schema([]), "response_format.json_schema.schema", "valid dictionary"),  # type: ignore[arg-type]
        (schema({"type": "thing"}), None, "the JSON schema cannot be used"),
        (schema({"$ref": "http://example.org/schema.json"}), None, "the JSON schema cannot be used"),
        (schema({"not": {"type": "string"}}), None, "the JSON schema cannot be used"),
        (schema({"enum": ["a" * 100_000]}), None, "may have"),
        (schema(nested(3000)), None, "nested too deeply"),
        ({"type": "json_object", "schema": {}}, "response_format.schema", "unknown field"),
        ("json_object", "response_format", "valid dictionary"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused(
    client: httpx.Client, response_format: Any, param: str | None, said: str
) -> None:
    error = refused(client, PATH, 400, messages=USER, response_format=response_format)
    assert error["param"] == param
    assert said in error["message"]
