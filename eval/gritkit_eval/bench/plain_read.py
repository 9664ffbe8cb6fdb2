"""What the disk gives a plain read: the same chunks and threads as the block store, no format and no checksum.

The load rate of the store is stated as a share of this. It knows nothing about blocks.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gritkit.kv.block_file import CHUNK_BYTES, THREAD_BYTES, THREADS, pool


def forget(paths: Sequence[Path]) -> None:
    """Have the system drop what it holds of these files, so that the next read is from the disk (Linux alone)."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)  # what is not written yet is not dropped
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def read_plainly(paths: Sequence[Path]) -> list[NDArray[np.uint8]]:
    """The bytes of these files, each in a fresh buffer."""
    with contextlib.ExitStack() as opened:
        handles = []
        for path in paths:
            handles.append(os.open(path, os.O_RDONLY))
            opened.callback(os.close, handles[-1])
        buffers = [np.empty(os.fstat(handle).st_size, dtype=np.uint8) for handle in handles]
        chunks = [
            (handle, buffer[start : start + CHUNK_BYTES].data, start)
            for handle, buffer in zip(handles, buffers, strict=True)
            for start in range(0, len(buffer), CHUNK_BYTES)
        ]
        _side_by_side([chunk for chunk in chunks if chunk[2] == 0], helpers=len(paths) - 1)
        others = [chunk for chunk in chunks if chunk[2] > 0]
        _side_by_side(others, helpers=sum(map(len, buffers)) // THREAD_BYTES - 1)
    return buffers


def _side_by_side(chunks: Sequence[tuple[int, memoryview, int]], *, helpers: int) -> None:
    left = iter(chunks)
    futures = [pool().submit(_work, left) for _ in range(min(helpers, THREADS - 1))]
    _work(left)
    for future in futures:
        if not future.cancel():
            future.result()


def _work(left: Iterator[tuple[int, memoryview, int]]) -> None:

    for handle, view, start in left:
        while view:
            count = os.preadv(handle, [view], start)
            assert count, "somebody cut the file off"
            view, start = view[count:], start + count
