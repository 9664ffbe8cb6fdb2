"""Where a request is answered when several processes could.

A question is answered by the process that holds the key-values of its passages. Whoever it comes to finds them, and
from the best of them follows whose it is: the same process whenever that passage is hit, as long as it is there
(rendezvous hashing, Thaler and Ravishankar 1998). Where that is another one, the request is given up here before
anything was loaded or said, and goes there together with what was found. A chat goes where its turns before went, since
the key-values of their beginning are there.

This module knows nothing about processes, or how a request gets to another one.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Literal

from gritkit.rag.answering import Question
from gritkit_serve.errors import HttpError

MISDIRECTED = 421
"""HTTP's own status for a request that another one is to answer. No client sees it."""

_MESSAGES = re.compile(r'"messages"\s*:\s*\[\s*')
_COMMA = re.compile(r"\s*,\s*")
_DECODER = json.JSONDecoder()
_MAX_BEFORE = 8
"""Messages before the first one of the user."""

placement: ContextVar[Placement | None] = ContextVar("placement", default=None)
"""Of the request that is worked on; None where there is one process only."""


def ranked(key: str, names: Iterable[str]) -> list[str]:
    """The names in an order that depends on the key; without one of them the others keep theirs."""
    return sorted(names, key=lambda name: hashlib.blake2b(f"{name}\n{key}".encode(), digest_size=8).digest())


def conversation_of(body: bytes) -> str | None:
    """What the turns of one chat have in common: its messages up to the first one of the user.

    None where it cannot be told at a glance: it decides what is faster, not what is right.
    """
    text = body.decode("utf-8", "replace")
    start = _MESSAGES.search(text)
    place = start.end() if start is not None else len(text)
    begun: list[str] = []
    while len(begun) < _MAX_BEFORE:
        try:
            message, end = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            return None
        begun.append(text[place:end])
        if isinstance(message, dict) and message.get("role") == "user":
            return "\n".join(begun)
        following = _COMMA.match(text, end)
        if following is None:
            return None
        place = following.end()
    return None


class Placement:
    """One request's, for the process ``own``. ``names`` are those that may answer it, none to answer it here.

    ``found`` is what another process found for it already. ``move`` is called once at most, with a new place and what
    was found, from a thread of its caller's.
    """

    def __init__(
        self,
        own: str,
        names: Sequence[str],
        *,
        found: Question | None = None,
        move: Callable[[str, Question], None],
    ) -> None:
        self.found = found
        self._own = own
        self._names = names
        self._move = move
        self._state: Literal["open", "here", "moved"] = "open"
        self._deciding = threading.Lock()

    def settle(self, question: Question) -> None:
        """Before its key-values are loaded. Raises HttpError where they are another's to load."""
        key = question.used[0].row.block_key
        owner = ranked(key, self._names)[0] if key and self._names else self._own
        with self._deciding:
            if self._state == "open" and owner != self._own:
                self._state = "moved"
                self._move(owner, question)
            if self._state == "moved":
                raise HttpError("another process has these documents", status=MISDIRECTED)
            self._state = "here"

    def stay(self) -> bool:
        """Before anything is said. False where it was moved already."""
        with self._deciding:
            if self._state == "open":
                self._state = "here"
            return self._state == "here"
