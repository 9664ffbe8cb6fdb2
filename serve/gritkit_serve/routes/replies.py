"""Bodies of responses as bytes, made outside the event loop where they may be large.

This module knows nothing about what they say.
"""

from __future__ import annotations

import secrets
from typing import Any

from fastapi import Response
from pydantic import BaseModel

from gritkit_serve.schemas.errors import ERRORS

EVENTS: dict[str, Any] = {"text/event-stream": {"example": 'data: {"choices": [...]}\n\ndata: [DONE]\n\n'}}
"""Without a schema: that of a document would be said of the whole text."""


def streams_too(whole: type[BaseModel], chunk: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """``responses=`` of a route that answers with a whole body, or with events when asked to."""
    return {
        **ERRORS,
        200: {
            "model": whole,
            "description": f"With stream=true: events whose data are {chunk.__name__} objects, then `data: [DONE]`.",
            "content": EVENTS,
        },
    }


def json_reply(body: BaseModel) -> Response:
    """A whole body."""
    return Response(body.model_dump_json(by_alias=True), media_type="application/json")


def new_id(kind: str) -> str:
    """An id that no other reply has."""
    return f"{kind}-{secrets.token_hex(12)}"
