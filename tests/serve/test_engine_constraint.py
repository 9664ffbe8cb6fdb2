"""Answers held to a grammar, against Python's own JSON parser and a validator of schemas."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from gritkit.errors import InputError
from gritkit.generation.decoder import Request
from gritkit.generation.params import Completion, SamplingParams
from gritkit_serve.engine.constraint import JsonGrammars
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


def test_where_there_is_no_way_on_the_text_ends(grammars: JsonGrammars) -> None:
    constraint = grammars.constraint(SCHEMA)
    model = shared_model("llama")
    constraint.chosen(model.tokens.encode("x")[0])  # no JSON begins so
    allowed = constraint.allowed(int(model.config.vocab_size)).nonzero().flatten()
    assert torch.equal(allowed, torch.tensor(sorted(model.eos_ids)))
