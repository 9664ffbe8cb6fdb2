"""One request as the server sees it from outside: its id, whose it is, what it used, when its tokens came.

A route gets its :class:`Call` through ``service.CallDep``; the log and the metrics read it when the request has ended.
This module knows nothing about HTTP messages, models or how anything is written down.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

from gritkit_serve.metrics import Metrics

UNMATCHED = "unmatched"
"""The route of a request that no route took."""
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass
class Call:
    """Made by the outermost middleware; lives as long as the request."""

    id: str
    scope: MutableMapping[str, Any] = field(repr=False)
    metrics: Metrics = field(repr=False)
    salt: str = ""
    """Whose caches may serve it: derived from the API key, empty where there are no keys."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    first_token_s: float | None = None
    """Seconds from the request's arrival to its first piece of text."""
    outcome: str | None = None
    """What ended it, when that was not an answer: ``disconnected``, ``deadline``."""
    body: bytes | None = field(default=None, repr=False)
    """What was sent, kept for the log where prompts are logged."""
    started: float = field(default_factory=time.perf_counter)
    _last_token: float | None = field(default=None, repr=False)

    @property
    def route(self) -> str:
        """The template (``/v1/kb/{name}``), never the path: names that clients choose must not become labels."""
        route = self.scope.get("route")
        return getattr(route, "path", None) or UNMATCHED

    def token(self) -> None:
        """Call at every piece of generated text: the time to the first one, and the gaps between, are measured."""
        now = time.perf_counter()
        if self._last_token is None:
            self.first_token_s = now - self.started
            self.metrics.first_token.labels(self.route).observe(self.first_token_s)
        else:
            self.metrics.between_tokens.labels(self.route).observe(now - self._last_token)
        self._last_token = now

    def use(self, *, prompt: int = 0, cached: int = 0, completion: int = 0) -> None:
        """Call once for every generation or batch of texts: tokens read, those of them from a cache, tokens written."""
        self.prompt_tokens += prompt
        self.cached_tokens += cached
        self.completion_tokens += completion
        for kind, count in (("prompt", prompt), ("cached", cached), ("completion", completion)):
            if count:
                self.metrics.tokens.labels(self.route, kind).inc(count)


def request_id(given: str | None) -> str:
    """The client's own when it is short and plain (it goes into logs and headers), else a new one."""
    return given if given and _ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"
