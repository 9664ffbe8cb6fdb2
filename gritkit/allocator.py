"""glibc's malloc, told to keep the large buffers of a forward pass, and to return what other work left behind.

By default an activation above the threshold (128 KiB, growing to at most 32 MiB) is a fresh ``mmap``: the kernel zeroes
its pages on first touch and takes them back as soon as it is freed, layer after layer.
Raising two thresholds keeps the pages in the heap, where the next layer reuses them.

glibc has up to eight heaps (arenas) a core, so that threads do not wait for each other. Each of them then keeps the
most that it ever had: what is free at the end of a heap other than the first goes back neither below the threshold nor
by ``malloc_trim``. A process of many threads whose requests are large wants few of them.

This module knows nothing about models.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST_MMAP_THRESHOLD = 32 << 20  # glibc refuses more (HEAP_MAX_SIZE / 2 on 64-bit machines)
_TRIM_THRESHOLD = 1 << 30
_ARENAS = 2


@functools.cache
def keep_large_buffers() -> bool:
    """Set both thresholds for this process, once. Returns whether this is a glibc that took them."""
    return _set(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) and _set(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)


@functools.cache
def share_heaps() -> bool:
    """Have the threads of this process share few heaps. Returns whether this is a glibc that took it.

    For the start of a process: heaps that are there stay. What the environment says (``MALLOC_ARENA_MAX``) is kept.
    """
    if "MALLOC_ARENA_MAX" in os.environ:
        return False
    return _set(_M_ARENA_MAX, _ARENAS)


def return_free_memory() -> bool:
    """Give what is free in the heap back to the kernel, after work that took much more than what follows it will.

    Returns whether this is a glibc and there was some.
    """
    if not sys.platform.startswith("linux"):
        return False
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return malloc_trim is not None and bool(malloc_trim(0))


def _set(parameter: int, value: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(parameter, value))  # musl has none
