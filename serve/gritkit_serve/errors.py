"""Every failure as the one shape that OpenAI's clients read: {"error": {"message", "type", "param", "code"}}.

A route raises and is done; what is raised decides the status:

    gritkit.errors.InputError (and RecordError, UnsupportedModelError)     400, with the message
    ParameterError("n=99 must be at most 8", param="n")                    400, naming the field
    NotFoundError("no model 'x'; there are: y", param="model")             404
    ConflictError("a knowledge base 'x' is there already")                 409
    HttpError(message, status=..., ...)                                    any other
    Overloaded, NotServing, EngineFailed (engine)                          429 and 503 with Retry-After, 500
    gritkit.errors.GenerationError (an answer that cannot go on)           500, with the message
    anything else                                                          500 without a word of what it was

Once a stream has begun its status is sent: ``event_of(error, request_id)`` is then the text of its last event.
This module knows nothing about routes, models or the log.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Send

from gritkit.errors import (
    GenerationError,
    GritkitError,
    InputError,
    MissingExtraError,
    RecordError,
    UnsupportedModelError,
)
from gritkit_serve.engine.errors import EngineFailed, NotServing, Overloaded
from gritkit_serve.validation import explain
from gritkit_serve.wording import as_fields

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
    500: "internal_error",
    501: "not_supported_error",
    503: "unavailable_error",
    504: "timeout_error",
}
"""The ``type`` of a status; other 4xx are invalid requests as well."""
NOT_SERVING_RETRY_S = 5.0
MAX_MESSAGE = 1000
"""Characters of a message; it may quote what was sent."""


class HttpError(GritkitError):
    """A failure with a status of its own."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s
        self.headers = dict(headers or {})


class ParameterError(HttpError, InputError):
    """A field of the request that cannot be used; ``param`` is its path, as ``messages[0].role``."""

    def __init__(self, message: str, *, param: str, code: str | None = None) -> None:
        super().__init__(message, status=400, param=param, code=code)


class NotFoundError(HttpError):
    """A model, knowledge base or document that there is not."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, status=404, param=param, code=code)


class ConflictError(HttpError):
    """Something is there already, or is being changed by somebody else."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message, status=409, param=param)


@dataclass(frozen=True)
class Problem:
    """A failure as it goes over the wire."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status) or ("invalid_request_error" if self.status < 500 else "internal_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def encoded(self) -> bytes:
        """ASCII, so that half a surrogate pair in what is quoted cannot break the answer about it."""
        return json.dumps(self.body).encode("ascii")

    def response(self) -> Response:
        return Response(self.encoded(), self.status, self.headers, media_type="application/json")

    async def send(self, send: Send) -> None:
        """As a whole answer, from a middleware."""
        body = self.encoded()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **self.headers}
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": raw})
        await send({"type": "http.response.body", "body": body})


def problem_of(error: BaseException, request_id: str = "") -> Problem:
    """What a client is told of a failure."""
    problem = _problem_of(_only(error), request_id)
    message = " ".join(problem.message.split())
    return replace(problem, message=message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 1] + "…")


def event_of(error: BaseException, request_id: str = "") -> str:
    """The data of the event that ends a stream after a failure."""
    return problem_of(error, request_id).encoded().decode("ascii")


def _problem_of(error: BaseException, request_id: str) -> Problem:
    if isinstance(error, HttpError):
        return Problem(error.status, str(error), error.param, error.code, error.headers | _retry(error.retry_after_s))
    if isinstance(error, RequestValidationError):
        message, param = explain(error.errors(), error.body)
        return Problem(400, message, param)
    if isinstance(error, HTTPException):
        return _http_problem(error)
    if isinstance(error, Overloaded):
        return Problem(429, str(error), code="overloaded", headers=_retry(error.retry_after_s))
    if isinstance(error, NotServing):
        return Problem(503, str(error), code="not_serving", headers=_retry(NOT_SERVING_RETRY_S))
    if isinstance(error, EngineFailed):
        return Problem(500, str(error), code="engine_failed")
    if isinstance(error, GenerationError):
        return Problem(500, str(error), code="generation_failed")
    if isinstance(error, MissingExtraError):
        return Problem(501, str(error))
    if isinstance(error, (InputError, RecordError, UnsupportedModelError)):
        return Problem(400, as_fields(str(error)))
    return internal(request_id)


def internal(request_id: str) -> Problem:
    """A defect, or a failure that is ours: the log has what it was, under this id."""
    return Problem(500, f"internal error; the server's log has it under request id {request_id}", code="internal_error")


def _http_problem(error: HTTPException) -> Problem:
    """Of starlette and FastAPI themselves: no such route, another method, a body that cannot be read."""
    messages = {
        404: "no such route: GET /openapi.json lists what there is",
        405: "this route does not take that method",
        400: "the body cannot be read",
    }
    own = error.detail not in {HTTPStatus(error.status_code).phrase, "There was an error parsing the body"}
    message = str(error.detail) if own else messages.get(error.status_code, str(error.detail))
    return Problem(error.status_code, message, headers=dict(error.headers or {}))


def _retry(seconds: float | None) -> dict[str, str]:
    return {} if seconds is None else {"Retry-After": str(max(1, round(seconds)))}


def _only(error: BaseException) -> BaseException:
    """What a task group wrapped, when it is one."""
    inner: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    return _only(inner[0]) if len(inner) == 1 else error


def install(app: FastAPI) -> None:
    """What a route raises on purpose gets its answer; a failure of ours goes on to where it is logged as well."""

    def answer(request: Request, error: Exception) -> Response:
        problem = problem_of(error)
        if problem.status == 500:
            raise error
        return problem.response()

    for kind in (GritkitError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer)
