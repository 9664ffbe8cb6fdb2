"""One request that is being generated, as its client holds it: events to iterate over, a result to wait for, cancel.

This module knows nothing about decoders or threads but that it is cancelled from any of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from gritkit.errors import GritkitError
from gritkit.generation.decoder import Request
from gritkit.generation.params import Completion, Event, Finished


class Generation:
    """Iterate over it once, or await :meth:`result`; then, or when the client has gone, it may be cancelled."""

    def __init__(self, request: Request, adapter: str | None, wake: Callable[[], None]) -> None:
        self.request = request
        self.adapter = adapter
        self.loop = asyncio.get_running_loop()
        self.cancelled = False
        self._wake = wake
        self._events: asyncio.Queue[Event | GritkitError] = asyncio.Queue()

    def deliver(self, event: Event | GritkitError) -> None:
        """In the loop's thread."""
        self._events.put_nowait(event)

    def cancel(self) -> None:
        """Free its slot at the next step; nothing more needs to come. Any thread, any number of times."""
        self.cancelled = True
        self._wake()

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Deltas, then one Finished. Raises what ended it. Left early, it is cancelled."""
        finished = False
        try:
            while not finished:
                event = await self._events.get()
                finished = isinstance(event, (Finished, GritkitError))
                if isinstance(event, GritkitError):
                    raise event
                yield event
        finally:
            if not finished:
                self.cancel()

    async def result(self) -> Completion:
        """The whole of it. Cancelling this task cancels the generation."""
        async for event in self:
            if isinstance(event, Finished):
                return event.completion
        raise AssertionError("a generation ends with Finished or an error")
