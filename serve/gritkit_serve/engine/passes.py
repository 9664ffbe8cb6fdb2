"""Forward passes that library code asks for in worker threads (a knowledge base that reads documents, scoring).

The thread that asks waits until the engine's has run the pass; the pass runs under the adapter of the call it is a part
of, which travels with the context. This module knows nothing about what a pass computes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from gritkit_serve.engine.workers import current_caller


@dataclass(eq=False)
class Pass:
    """One forward pass and who waits for it."""

    forward: Callable[[], Any]
    adapter: str | None = field(default_factory=lambda: current_caller().adapter)
    result: Future[Any] = field(default_factory=Future)


class Passes:
    """The passes that wait, at most one for each worker thread."""

    name = "passes"

    def __init__(self, use: Callable[[str | None], None]) -> None:
        self._use = use
        self._waiting: deque[Pass] = deque()
        self._running: Pass | None = None

    def add(self, one: Pass) -> None:
        self._waiting.append(one)

    def wanting(self) -> bool:
        return bool(self._waiting)

    def run(self) -> None:
        """The oldest of them. What it raises is also raised where it was asked for."""
        self._running = one = self._waiting.popleft()
        self._use(one.adapter)
        try:
            result = one.forward()
        except Exception as error:
            one.result.set_exception(error)
            raise
        one.result.set_result(result)
        self._running = None

    def fail(self, error: BaseException) -> None:
        """End what was running, if its own error has not done so."""
        if self._running is not None and not self._running.result.done():
            self._running.result.set_exception(error)
        self._running = None

    def refuse_waiting(self, error: BaseException) -> None:
        """End everything that waits."""
        while self._waiting:
            self._waiting.popleft().result.set_exception(error)
