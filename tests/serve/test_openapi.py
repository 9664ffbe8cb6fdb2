"""The document describes what the server does, and nothing that can be generated from it brings the server down.

``GRITKIT_FUZZ=20000`` is how many requests are generated in all, fresh ones in every run; without it they are few and
the same each time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("schemathesis")
pytest.importorskip("lancedb")

import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gritkit_serve.app import create_app
from gritkit_serve.service import Service
from gritkit_serve.settings import Settings
from tests.models import TEXTS, grit_model
from tests.serve.knowledge import filled, kb_serving
from tests.serve.serving import PATIENCE_S, Running
from tests.serve.talking import post, until

NUM_REQUESTS = int(os.environ.get("GRITKIT_FUZZ", "300"))
FRESH = "GRITKIT_FUZZ" in os.environ
DOCUMENT: Any = create_app(Service("tiny")).openapi()
API = schemathesis.openapi.from_dict(DOCUMENT)
NUM_OPERATIONS = sum(len(path) for path in DOCUMENT["paths"].values())
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server whose every answer is short, with a knowledge base of the name that is an example in the document."""
    folder = tmp_path_factory.mktemp("fuzzed")
    model = grit_model("qwen3", prompt_format="grit")
    short = Settings(default_max_tokens=4)
    with (
        kb_serving(folder, of=model, settings=short, slot_tokens=64, slots=4) as running,
        running.client() as client,
    ):
        filled(client, "handbook")
        yield running


# -- the document ------------------------------------------------------------------------------------------------------


def test_the_document_is_valid_and_served(fuzzed: Running) -> None:
    API.validate()
    assert DOCUMENT["openapi"].startswith("3.1")
    names = [operation["operationId"] for path in DOCUMENT["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names)) == NUM_OPERATIONS
    with fuzzed.client() as client:
        assert client.get("/openapi.json").json() == DOCUMENT


def test_every_route_says_how_it_can_fail() -> None:
    for path in DOCUMENT["paths"].values():
        for operation in path.values():
            assert {"400", "401", "404", "413", "429", "431", "503"} <= set(operation["responses"])
            assert "422" not in operation["responses"]
            for status in ("429", "503"):
                assert "Retry-After" in operation["responses"][status]["headers"]
            assert operation["summary"]
            assert operation["security"] == [{"bearer": []}, {"header": []}, {}]
    assert "HTTPValidationError" not in DOCUMENT["components"]["schemas"]


def test_what_only_knowledge_bases_answer_stands_with_them() -> None:
    fixed = []
    for path, item in DOCUMENT["paths"].items():
        for method, operation in item.items():
            responses = operation["responses"]
            assert ({"409", "501", "502", "507"} <= set(responses)) == path.startswith("/v1/kb")
            if "makes and deletes none" in responses["403"]["description"]:
                fixed.append((method, path))
    assert fixed == [("post", "/v1/kb"), ("delete", "/v1/kb/{name}")]
    assert {"409", "501"} <= set(DOCUMENT["paths"]["/v1/chat/completions"]["post"]["responses"])  # with kb


def test_every_reference_leads_somewhere() -> None:
    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                yield value["$ref"]
            for one in value.values():
                yield from references(one)
        elif isinstance(value, list):
            for one in value:
                yield from references(one)

    found = set(references(DOCUMENT))
    assert "#/components/schemas/ErrorResponse" in found
    for reference in found:
        assert reference.split("/")[-1] in DOCUMENT["components"]["schemas"], reference
    assert "ChatChunk" in DOCUMENT["components"]["schemas"]


def test_bounds_are_in_the_document() -> None:
    chat = DOCUMENT["components"]["schemas"]["ChatRequest"]
    assert chat["additionalProperties"] is False
    assert chat["properties"]["n"]["anyOf"][0] == {"type": "integer", "minimum": 1}
    assert chat["properties"]["tools"]["enum"] == [None, []]
    assert chat["properties"]["temperature"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 100}
    assert chat["required"] == ["messages"]


# -- whatever is sent --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@API.parametrize()
@settings(
    max_examples=max(1, NUM_REQUESTS // NUM_OPERATIONS),
    deadline=None,
    derandomize=not FRESH,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
def test_no_request_is_too_much(case: Any, fuzzed: Running) -> None:
    case.call_and_validate(base_url=fuzzed.url, checks=CHECKS, timeout=PATIENCE_S)


@pytest.mark.slow
def test_the_server_is_as_before(fuzzed: Running) -> None:
    """After all of them: whole answers, no slot and no request left behind."""
    with fuzzed.client() as client:
        answer = post(client, "/v1/completions", prompt=TEXTS[0], max_tokens=8, temperature=0)
        expected = fuzzed.service.model.complete(TEXTS[0], max_new_tokens=8)
        assert answer["choices"][0]["text"] == expected.text
    engine = fuzzed.service.engine
    assert until(lambda: engine.load().running == engine.load().waiting == engine.load().calls == 0, PATIENCE_S)
    assert (engine.state, engine.load().failures) == ("ready", 0)
