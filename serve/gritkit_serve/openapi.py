"""What /openapi.json says beyond the routes' own models: the statuses that the layers around them add, the key, and the
events of a stream.

This module knows nothing about what the routes do.
"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gritkit_serve.schemas.chat import ChatChunk
from gritkit_serve.schemas.errors import ERRORS, ErrorResponse
from gritkit_serve.schemas.kb import NewDocuments

_PLACE = "#/components/schemas/{model}"
_REF = {"$ref": _PLACE.format(model=ErrorResponse.__name__)}
_BESIDES: list[tuple[type[BaseModel], Literal["serialization", "validation"]]] = [
    (ChatChunk, "serialization"),
    (NewDocuments, "validation"),
]
"""Models that routes name without taking or returning them as such: a stream's events, a body that may be files."""
_RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}
_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "Where the server has API keys."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key."},
}
_WITH_A_KEY_OR_NONE: list[dict[str, list[str]]] = [{"bearer": []}, {"header": []}, {}]


class DescribedApp(FastAPI):
    """FastAPI, whose document says what really happens: what cannot be used is a 400 here, never a 422."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = _corrected(super().openapi())
        return self.openapi_schema


def _corrected(document: dict[str, Any]) -> dict[str, Any]:
    for path in document["paths"].values():
        for operation in path.values():
            responses = operation["responses"]
            responses.pop("422", None)
            for status, stated in ERRORS.items():
                description = responses.get(str(status), stated)["description"]  # a route's own, if it has one
                described = {"description": description, "content": {"application/json": {"schema": _REF}}}
                responses[str(status)] = described | ({"headers": _RETRY_AFTER} if status in (429, 503) else {})
            operation["security"] = _WITH_A_KEY_OR_NONE
    components = document["components"]
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    _, besides = models_json_schema(_BESIDES, ref_template=_PLACE)
    components["schemas"] |= besides["$defs"]
    components["securitySchemes"] = _KEYS
    return document
