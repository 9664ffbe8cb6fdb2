"""The server's log: one JSON object a line, on stderr.

    {"time": ..., "level": "info", "event": "request", "id": ..., "route": "/v1/embeddings", "status": 200, "ms": 12.3}

What users typed is never in it, unless the operator asked for that: a request is its route template, and a failure its
type and the places in the code. This module knows nothing about requests beyond what their :class:`Call` says.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import datetime, timezone
from typing import Any

from gritkit_serve.calls import Call

LOG = logging.getLogger("gritkit.serve")
_BODY_CHARS = 16 << 10
_NO_FILES = ("socket.accept() out of system resource", "Exception in callback BaseSelectorEventLoop._start_serving(")
"""asyncio says the first for each of the connections that wait, and will try again as often; the second each time that
the socket is closed by then."""
_SELDOM_S = 60.0


class JsonLines(logging.Formatter):
    """A record as one line; ``extra={"fields": {...}}`` are further members of the object."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage().partition("\n")[0],  # asyncio goes on with what an exception says
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line |= failure_fields(record.exc_info[1], with_message=False)
        return json.dumps(line)


class Seldom(logging.Filter):
    """Lets what asyncio says when no more files can be opened pass once a minute: it says so hundreds of times."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage() if record.name == "asyncio" else ""
        for beginning in _NO_FILES:
            if text.startswith(beginning):
                since = record.created - self._last.get(beginning, -_SELDOM_S)
                if 0 <= since < _SELDOM_S:
                    return False
                self._last[beginning] = record.created
        return True


def configure(*, level: int = logging.INFO) -> None:
    """Everything of ours, and warnings of all others, as JSON lines on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    handler.addFilter(Seldom())
    for name, its_level in ((None, logging.WARNING), ("gritkit", level), ("uvicorn", logging.WARNING)):
        log = logging.getLogger(name)
        log.handlers = [handler]
        log.setLevel(its_level)
        log.propagate = False
    logging.captureWarnings(True)


def log_request(call: Call, status: int, seconds: float) -> None:
    """The line of a request that has ended."""
    client = call.scope.get("client")
    fields: dict[str, Any] = {
        "id": call.id,
        "client": client[0] if client else None,
        "method": call.scope["method"],
        "route": call.route,
        "status": status,
        "ms": round(seconds * 1e3, 1),
    }
    if call.first_token_s is not None:
        fields["first_token_ms"] = round(call.first_token_s * 1e3, 1)
    for name in ("prompt_tokens", "cached_tokens", "completion_tokens"):
        if count := getattr(call, name):
            fields[name] = count
    if call.outcome is not None:
        fields["outcome"] = call.outcome
    if call.body is not None:
        fields["body"] = call.body[:_BODY_CHARS].decode("utf-8", "replace")
    LOG.info("request", extra={"fields": fields})


def log_failure(error: BaseException, request_id: str, *, with_message: bool) -> None:
    """A defect, or the end of something below; its message may quote a prompt and is left out unless asked for."""
    LOG.error("failure", extra={"fields": {"id": request_id, **failure_fields(error, with_message=with_message)}})


def failure_fields(error: BaseException, *, with_message: bool) -> dict[str, Any]:
    """The type of an error, what it came from, and where in the code; no values."""
    fields: dict[str, Any] = {"error": type(error).__name__}
    if with_message:
        fields["message"] = str(error)
    fields["at"] = [f"{f.filename}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)[-12:]]
    cause = error.__cause__ or error.__context__
    inner = getattr(error, "exceptions", ())
    if cause is not None:
        fields["cause"] = {"error": type(cause).__name__}
    if inner:
        fields["causes"] = [failure_fields(one, with_message=with_message) for one in inner[:4]]
    return fields
