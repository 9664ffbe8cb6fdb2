"""Which JSON schemas of clients can be used: a schema is tried in a process of its own before the server compiles it.

This module knows nothing about HTTP messages, tokenizers or answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
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


class JsonSchemas:
    """Tries schemas, and remembers which could be used: a client sends the same one again and again."""

    def __init__(self) -> None:
        self._usable: OrderedDict[bytes, None] = OrderedDict()
        self._free = asyncio.Semaphore(_PROCESSES)
        self._num_waiting = 0

    async def check(self, schema: dict[str, Any]) -> None:
        """Return for a schema that can be compiled within the bounds. Cancelled, it ends its process.

        Raises:
            InputError: for one that is too large, cannot be expressed, or takes too much to compile.
            Overloaded: when too many are being tried.
        """
        text = grammar.schema_text(schema)
        key = hashlib.sha256(text.encode()).digest()
        if key not in self._usable:
            await self._wait_and_try(text)
            self._usable[key] = None
            if len(self._usable) > _REMEMBERED:
                self._usable.popitem(last=False)
        self._usable.move_to_end(key)

    async def _wait_and_try(self, text: str) -> None:
        if self._num_waiting >= _PROCESSES + _WAITING:
            raise Overloaded(f"{self._num_waiting} JSON schemas are being tried", _RETRY_S)
        self._num_waiting += 1
        try:
            async with self._free:
                said = await _tried(text)
        finally:
            self._num_waiting -= 1
        if not said:
            raise InputError(
                f"the JSON schema takes more than {grammar.SECONDS} s or {grammar.MEMORY_BYTES >> 20} MiB to compile, "
                "or is nested too deeply: use fewer patterns, and fewer levels of $ref"
            )
        if (told := json.loads(said)) is not None:
            raise InputError(told["wrong"])


async def _tried(text: str) -> bytes:
    """The line that the process says; nothing where it was lost."""
    async with child("gritkit_serve.grammar") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(ConnectionError, asyncio.TimeoutError):  # lost before it had read all, or stuck
            process.stdin.write(text.encode())
            process.stdin.write_eof()
            return await asyncio.wait_for(process.stdout.readline(), START_S)
    return b""
