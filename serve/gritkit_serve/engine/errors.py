"""Why the engine does not do what it was asked to; every message is one line that a client may see.

This module knows nothing about HTTP.
"""

from __future__ import annotations

from gritkit.errors import GritkitError


class Overloaded(GritkitError):
    """A queue is full; the request was not taken and may be sent again."""

    def __init__(self, what: str, retry_after_s: float) -> None:
        super().__init__(f"the server is busy: {what}; try again in {retry_after_s:.0f} s")
        self.retry_after_s = retry_after_s


class NotServing(GritkitError):
    """The engine is starting, ending or recovering, and takes nothing now."""


class EngineFailed(GritkitError):
    """A forward pass failed under this request; the engine goes on without it."""


class Abandoned(GritkitError):
    """Nobody waits any more for the work that a pass was a part of."""
