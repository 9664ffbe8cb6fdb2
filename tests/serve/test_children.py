"""Processes of one block, gone at its end whatever they were about to say."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from gritkit_serve.children import child
from tests.serve.serving import PATIENCE_S


def test_one_that_has_more_to_say_than_anybody_reads_is_gone_all_the_same() -> None:
    """asyncio waits for the end of what a process says, and stops reading what nobody takes from it."""

    async def left_early() -> asyncio.subprocess.Process:
        async with child("this", limit=1) as process:
            assert process.stdout is not None
            assert await process.stdout.readexactly(3) == b"The"
        return process

    process = asyncio.run(asyncio.wait_for(left_early(), PATIENCE_S))
    assert process.returncode is not None


def test_one_that_is_waiting_is_gone_when_its_block_is_cancelled() -> None:
    started: list[asyncio.subprocess.Process] = []

    async def cancelled() -> None:
        async with child("json.tool") as process:  # which waits for its input
            started.append(process)
            await asyncio.get_running_loop().create_future()

    async def cancel() -> None:
        task = asyncio.create_task(cancelled())
        while not started:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait_for(asyncio.wait([task]), PATIENCE_S)

    asyncio.run(cancel())
    assert started[0].returncode == -9


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python has no safe path before 3.11")
def test_modules_of_the_folder_it_was_started_in_are_none_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "this.py").write_text("print('from the folder')")
    monkeypatch.chdir(tmp_path)

    async def first_line() -> bytes:
        async with child("this") as process:
            assert process.stdout is not None
            return await process.stdout.readline()

    assert asyncio.run(asyncio.wait_for(first_line(), PATIENCE_S)).startswith(b"The Zen of Python")
