"""The one form of all failures, and which of them every route can answer.

This module knows nothing about what fails.
"""

from __future__ import annotations

from typing import Any

from gritkit_serve.schemas.common import Reply


class ErrorDetail(Reply):
    """What went wrong, and what to do."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(Reply):
    """The body of every status but 2xx."""

    error: ErrorDetail


_REASONS = {
    400: "The request cannot be used; `param` names the field.",
    401: "No API key, or a wrong one.",
    403: "A server without an API key answers programs of its own machine alone.",
    404: "There is no such model or thing.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "Too much is waiting already; come again after Retry-After.",
    431: "The headers are too large.",
    500: "A failure of the server; its log has it under the request's id.",
    503: "The server is starting, draining or restarting its engine; come again after Retry-After.",
    504: "The request took too long and was cancelled.",
}

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": reason} for status, reason in _REASONS.items()
}
"""For ``responses=`` of a route."""
