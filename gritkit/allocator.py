"""glibc's malloc, told to keep the large buffers of a forward pass, and to return what other work left behind.

By default an activation above the threshold (128 KiB, growing to at most 32 MiB) is a fresh ``mmap``: the kernel zeroes
its pages on first touch and takes them back as soon as it is freed, layer after layer.
Raising two thresholds keeps the pages in the heap, where the next layer reuses them.

This module knows nothing about models.
"""

from __future__ import annotations

import ctypes
import functools
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20  # glibc refuses more (HEAP_MAX_SIZE / 2 on 64-bit machines)
_TRIM_THRESHOLD = 1 << 30


@functools.cache
def keep_large_buffers() -> bool:
    """Set both thresholds for this process, once. Returns whether this is a glibc that took them."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    taken = mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)
    return bool(taken)


def return_free_memory() -> bool:
    """Give what is free in the heap back to the kernel, after work that took much more than what follows it will.

    Returns whether this is a glibc and there was some.
    """
    if not sys.platform.startswith("linux"):
        return False
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return malloc_trim is not None and bool(malloc_trim(0))
