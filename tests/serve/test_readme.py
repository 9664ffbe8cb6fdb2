"""What serve/README.md and serve/CLIENTS.md list is what there is: fields, options; and what they show works."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from gritkit_serve.schemas.chat import ChatMessage, ChatRequest, JsonSchema
from gritkit_serve.schemas.completions import CompletionRequest
from gritkit_serve.schemas.embeddings import EmbeddingRequest
from gritkit_serve.schemas.rerank import RerankRequest
from gritkit_serve.schemas.sampling import StreamOptions

SERVE = Path(__file__).parents[2] / "serve"
CLIENTS = (SERVE / "CLIENTS.md").read_text("utf-8")
BODIES: dict[str, type[BaseModel]] = {
    "chat": ChatRequest,
    "message": ChatMessage,
    "completion": CompletionRequest,
    "embedding": EmbeddingRequest,
    "rerank": RerankRequest,
    "stream_options": StreamOptions,
    "json_schema": JsonSchema,
}
"""By the names that the page has for them."""


# -- fields ------------------------------------------------------------------------------------------------------------


def rows(page: str, first: str) -> list[list[str]]:
    """The cells of the table whose first column has this title."""
    lines = iter(page.partition(f"\n| {first} |")[2].splitlines()[2:])
    found = []
    for line in lines:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def fields(beginning: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(body, field, schema) of each whose description begins so."""
    for name, body in BODIES.items():
        for field, schema in body.model_json_schema()["properties"].items():
            if schema.get("description", "").startswith(beginning):
                yield name, field, schema


def test_the_page_names_every_field_that_is_refused_and_the_values_that_are_not() -> None:
    listed = {
        (body, field): [json.loads(value) for value in quoted(taken)]
        for names, bodies, taken in rows(CLIENTS, "refused")
        for body in bodies.split(", ")
        for field in quoted(names)
    }
    refused = {
        (body, field): [value for value in schema["enum"] if value is not None]
        for body, field, schema in fields("Not supported")
    }
    assert len(refused) > 20
    assert listed == refused


def test_the_page_names_every_field_that_has_no_effect() -> None:
    listed = {
        (body, field)
        for names, bodies in rows(CLIENTS, "taken")
        for body in bodies.split(", ")
        for field in quoted(names)
    }
    without_effect = {(body, field) for body, field, _ in fields("Accepted; has no effect")}
    assert len(without_effect) > 20
    assert listed == without_effect
