"""From the engine's thread to the event loops of those who wait: one wake-up of a loop for all that a step brought.

This module knows nothing about what is delivered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

Call = tuple[Callable[..., None], tuple[Any, ...]]


class Delivery:
    """Collects calls for event loops and hands them over together."""

    def __init__(self) -> None:
        self._calls: dict[asyncio.AbstractEventLoop, list[Call]] = {}

    def add(self, loop: asyncio.AbstractEventLoop, call: Callable[..., None], *arguments: Any) -> None:
        """To be called in the loop's thread."""
        self._calls.setdefault(loop, []).append((call, arguments))

    def send(self) -> None:
        """Wake every loop that has calls. One that was closed meanwhile has nobody waiting any more."""
        calls, self._calls = self._calls, {}
        for loop, own in calls.items():
            try:
                loop.call_soon_threadsafe(_run, own)
            except RuntimeError:
                if not loop.is_closed():
                    raise


def _run(calls: list[Call]) -> None:
    for call, arguments in calls:
        call(*arguments)


def set_result(future: asyncio.Future[Any], value: Any) -> None:
    """In the loop's thread; whoever waited may have gone."""
    if not future.done():
        future.set_result(value)


def set_error(future: asyncio.Future[Any], error: BaseException) -> None:
    """As :func:`set_result`."""
    if not future.done():
        future.set_exception(error)
