"""Processes that do what strangers' input could make endless: nothing of the server is in them, and they are bounded.

They bound themselves (:mod:`gritkit_serve.rlimits`). This module knows nothing about what they do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

from anyio import CancelScope

START_S = 60.0
"""For a process to begin, on a busy machine."""
_ENVIRONMENT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL")
"""What Python needs to start; no keys."""
_SAFE_PATH = {"PYTHONSAFEPATH": "1"}
"""From Python 3.11 on: modules of the folder that the server was started in are none of the library's."""


@contextlib.asynccontextmanager
async def child(module: str, **options: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """``python -m module`` with pipes at both ends, until the end of the block; then it is gone, however far it was."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ} | _SAFE_PATH, **options,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)  # process.kill() may wait for it, and asyncio could not any more
        with CancelScope(shield=True):
            await _ended(process)


async def _ended(process: asyncio.subprocess.Process) -> None:
    """asyncio waits for the end of what it said as well, and that is not read while the reader has enough of it."""
    assert process.stdout is not None
    while await process.stdout.read(1 << 16):
        pass
    await process.wait()
