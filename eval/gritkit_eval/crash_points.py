"""Where a worker of the crash test kills itself: the n-th time that it comes to a low-level step.

The steps are wrapped in the worker's process only; the product knows nothing of them. A step can be met before it is
taken, after it, or halfway: a file of which half is written, a commit that has begun.

This module knows nothing about what the worker does.
"""

from __future__ import annotations

import builtins
import ctypes
import io
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEPS = ("open", "write", "fsync", "rename", "unlink", "commit", "optimize", "table")
MOMENTS = {
    "write": ("half",),
    "commit": ("before", "during", "after"),
    "optimize": ("during", "after"),
    "table": ("data", "_transactions", "_versions", "_deletions", "_indices"),
}
"""Of the others: before and after. A table's are its folders, of whose files LanceDB has just begun or ended one."""
_LONGEST_COMMIT_S = 0.04
_CREATED_CLOSED_OR_MOVED = 0x100 | 0x8 | 0x80 | 0x40  # of inotify, as is the size of an event without its name
_EVENT = 16


def random_point(rng: random.Random) -> dict[str, Any]:
    """A step, a moment of it, and how often it is passed first."""
    step = rng.choice((*STEPS, "commit", "table"))
    often = {"commit": 6, "optimize": 2, "unlink": 12, "rename": 30, "open": 30, "write": 30, "table": 30}.get(step, 60)
    return {
        "step": step,
        "moment": rng.choice(MOMENTS.get(step, ("before", "after"))),
        "number": rng.randint(1, often),
        "delay": rng.uniform(0, _LONGEST_COMMIT_S),
    }


def arm(point: dict[str, Any]) -> Callable[[Any, Path], None]:
    """Wrap the step in this process. Returns what must be given the store, whose commits are steps, and its folder."""
    step, moment = point["step"], point["moment"]
    left = [int(point["number"])]
    lock = threading.Lock()

    def due() -> bool:
        with lock:
            left[0] -= 1
            return left[0] == 0

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not due():
                return function(*args, **kwargs)
            if moment == "before":
                die()
            if moment == "during":
                threading.Thread(target=_die_later, args=[point["delay"]], daemon=True).start()
            result = function(*args, **kwargs)
            if moment == "during":
                time.sleep(_LONGEST_COMMIT_S)
            die()
            return result

        return call

    if step in ("fsync", "unlink"):
        setattr(os, step, wrapped(getattr(os, step)))
    elif step == "rename":
        os.replace = wrapped(os.replace)
    elif step in ("open", "write"):
        inner = io.open
        counted = wrapped(inner)

        def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if not set(mode) & set("wxa+"):
                return inner(file, mode, *args, **kwargs)
            if step == "open":
                return counted(file, mode, *args, **kwargs)
            return _Halving(inner(file, mode, *args, **kwargs), due)

        io.open = builtins.open = opened

    def give_store(store: Any, folder: Path) -> None:
        if step == "commit":
            store.replace, store.delete = wrapped(store.replace), wrapped(store.delete)
        elif step == "optimize":
            store.optimize = wrapped(store.optimize)
        elif step == "table":
            for table in folder.glob("documents_*.lance"):
                _watch(table / moment, due)

    return give_store


class _Halving:
    """A file of which the process writes half of what it was given when its time has come."""

    def __init__(self, file: Any, due: Callable[[], bool]) -> None:
        self._file = file
        self._due = due

    def write(self, data: Any) -> Any:
        if self._due():
            self._file.write(memoryview(data)[: len(data) // 2])
            self._file.flush()
            die()
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Halving:
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()


def _watch(folder: Path, due: Callable[[], bool]) -> None:
    """Die when LanceDB, whose writing no Python sees, has begun or ended its n-th file there (Linux)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not folder.is_dir() or not hasattr(libc, "inotify_init1"):
        return
    handle = libc.inotify_init1(os.O_CLOEXEC)
    libc.inotify_add_watch(handle, os.fsencode(folder), _CREATED_CLOSED_OR_MOVED)

    def follow() -> None:
        while True:
            data = os.read(handle, 1 << 16)
            while data:
                length = int.from_bytes(data[_EVENT - 4 : _EVENT], sys.byteorder)
                data = data[_EVENT + length :]
                if due():
                    die()

    threading.Thread(target=follow, daemon=True).start()


def die() -> None:
    """As a power cut does: nothing is flushed, nobody is told."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # the signal comes first


def _die_later(seconds: float) -> None:
    time.sleep(seconds)
    die()
