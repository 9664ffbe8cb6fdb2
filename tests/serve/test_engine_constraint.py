"""Answers held to a grammar, against Python's own JSON parser and a validator of schemas."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gritkit.errors import InputError
from gritkit.generation.decoder import Request
from gritkit.generation.params import Completion, SamplingParams
from gritkit_serve.engine.constraint import JsonConstraint, JsonGrammars
from tests.models import shared_model

jsonschema = pytest.importorskip("jsonschema")

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
        "kind": {"enum": ["beaver", "otter"]},
    },
    "required": ["name", "sizes", "kind"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def grammars() -> JsonGrammars:
    model = shared_model("llama")
    return JsonGrammars(model.tokens, int(model.config.vocab_size), model.eos_ids)


def answer(grammars: JsonGrammars, schema: dict[str, Any] | None, **params: Any) -> Completion:
    model = shared_model("llama")
    sampling = SamplingParams(**{"max_new_tokens": 300, **params})
    one = Request(model.tokens.raw_prompt("json:"), sampling, constraint=grammars.constraint(schema))
    return model.generate([one])[0]


@pytest.mark.parametrize("seed", range(6))
def test_a_random_model_writes_what_the_schema_allows(grammars: JsonGrammars, seed: int) -> None:
    done = answer(grammars, SCHEMA, temperature=1.0, seed=seed)
    assert done.finish_reason == "stop"
    jsonschema.validate(json.loads(done.text), SCHEMA)


def test_greedily_too(grammars: JsonGrammars) -> None:
    done = answer(grammars, {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
                             "additionalProperties": False})  # fmt: skip
    assert json.loads(done.text)["a"] in (True, False)


def test_any_object_begins_as_one(grammars: JsonGrammars) -> None:
    assert answer(grammars, None, max_new_tokens=20, temperature=1.0, seed=1).text.startswith("{")


def test_other_rows_of_the_batch_are_as_they_would_be_alone(grammars: JsonGrammars) -> None:
    model = shared_model("llama")
    free = Request(model.tokens.raw_prompt("json:"), SamplingParams(max_new_tokens=20))
    held = Request(
        model.tokens.raw_prompt("json:"), SamplingParams(max_new_tokens=20), constraint=grammars.constraint(SCHEMA)
    )
    together, alone = model.generate([free, held]), model.generate([free])
    assert together[0].token_ids == alone[0].token_ids


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "nothing"}, "cannot be used"),
        ({"$ref": "https://example.org/schema.json"}, "cannot be used"),
        ({"enum": ["x" * 70_000]}, "bytes and may have"),
        ({"type": "string", "pattern": "("}, "cannot be used"),
    ],
)
def test_schemas_that_cannot_be_used(grammars: JsonGrammars, schema: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        grammars.constraint(schema)


def allowed(constraint: JsonConstraint) -> list[int]:
    tokens: list[int] = constraint.allowed(int(shared_model("llama").config.vocab_size)).nonzero().flatten().tolist()
    return tokens


def test_where_the_json_is_whole_the_text_ends(grammars: JsonGrammars) -> None:
    constraint, model = grammars.constraint({"const": 7}), shared_model("llama")
    for token in model.tokens.encode("7"):
        assert token in allowed(constraint)
        constraint.chosen(token)
    assert allowed(constraint) == sorted(model.eos_ids)


def test_where_there_is_no_way_on_it_is_an_error_and_no_end(grammars: JsonGrammars) -> None:
    """An answer that ended there would look like one that obeys."""
    constraint = grammars.constraint(SCHEMA)
    constraint.chosen(shared_model("llama").tokens.encode("x")[0])  # no JSON begins so
    with pytest.raises(InputError, match="cannot be used"):
        allowed(constraint)


def test_limits_of_the_grammar_are_an_error_and_no_end(grammars: JsonGrammars) -> None:
    many = {"type": "object", "properties": {f"p{index}": {"type": "string"} for index in range(700)}}
    with pytest.raises(InputError, match=r"Current row has .* items; max is 2000"):
        answer(grammars, many, temperature=0)


def test_copies_go_on_apart(grammars: JsonGrammars) -> None:
    one = grammars.constraint({"enum": ["beaver", "otter"]})
    at_first = allowed(one)
    other = one.copy()
    one.chosen(shared_model("llama").tokens.encode('"')[0])
    assert allowed(one) != at_first
    assert allowed(other) == at_first
