"""Which JSON schemas of clients can be used: a schema is tried in a process of its own before the server compiles it.

This module knows nothing about HTTP messages, tokenizers or answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
from collections import OrderedDict
from typing import Any

from gritkit.errors import InputError
from gritkit_serve import grammar
from gritkit_serve.children import START_S, child
from gritkit_serve.engine import Overloaded

_PROCESSES = 2  # at work at once
_WAITING = 32  # and waiting for one
_REMEMBERED = 4096
_RETRY_S = 5.0
_LOG = logging.getLogger("gritkit.serve")


class JsonSchemas:
    """Tries schemas, and remembers what came of it: a client sends the same one again and again."""

    def __init__(self) -> None:
        self._tried: OrderedDict[bytes, str | None] = OrderedDict()
        """Why each cannot be used, the one longest unused first; None: it can."""
        self._free = asyncio.Semaphore(_PROCESSES)
        self._num_waiting = 0

    async def check(self, schema: dict[str, Any]) -> None:
        """Return for a schema that can be compiled within the bounds. Cancelled, it ends its process.

        Raises:
            InputError: for one that is too large, cannot be expressed, or takes too much to compile.
            Overloaded: when too many are being tried, or none can be.
        """
        text = grammar.schema_text(schema)
        key = hashlib.sha256(text.encode()).digest()
        if key not in self._tried:
            await self._wait_and_try(key, text)
        self._tried.move_to_end(key)
        if (wrong := self._tried[key]) is not None:
            raise InputError(wrong)

    async def _wait_and_try(self, key: bytes, text: str) -> None:
        if self._num_waiting >= _PROCESSES + _WAITING:
            raise Overloaded(f"{self._num_waiting} JSON schemas are being tried", _RETRY_S)
        self._num_waiting += 1
        try:
            async with self._free:
                if key not in self._tried:  # by who waited before this one
                    self._tried[key] = await _wrong_with(text)
        finally:
            self._num_waiting -= 1
        if len(self._tried) > _REMEMBERED:
            self._tried.popitem(last=False)


async def _wrong_with(text: str) -> str | None:
    """Why a schema cannot be used. Raises Overloaded where it could not be tried, which is no fault of its."""
    try:
        begun, said = await _said_of(text)
    except OSError as error:
        begun, said = False, b""
        _LOG.warning("no process for a JSON schema: %s", error.strerror or error)
    if not begun:
        _LOG.warning("a process for a JSON schema did not begin: is memory short?")
        raise Overloaded("JSON schemas cannot be tried now", _RETRY_S)
    if not said:
        return (
            f"the JSON schema takes more than {grammar.SECONDS} s or {grammar.MEMORY_BYTES >> 20} MiB to compile, "
            "or is nested too deeply: use fewer patterns, and fewer levels of $ref"
        )
    told = json.loads(said)
    return None if told is None else str(told["wrong"])


async def _said_of(text: str) -> tuple[bool, bytes]:
    """Whether the process began, and the line that it says; nothing where it was lost."""
    begun, said = False, b""
    async with child("gritkit_serve.grammar") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(ConnectionError, asyncio.TimeoutError):  # lost before it had read all, or stuck
            process.stdin.write(text.encode())
            process.stdin.write_eof()
            begun = await asyncio.wait_for(process.stdout.readline(), START_S) == grammar.READY
            said = await asyncio.wait_for(process.stdout.readline(), START_S)
    return begun, said
