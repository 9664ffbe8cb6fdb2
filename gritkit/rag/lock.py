"""Who may change a knowledge base: many writers at once, or one who needs it still.

A writer holds the lock with others for the length of one call; collecting garbage, compacting, deleting and re-indexing
hold it alone. The operating system lets go of a lock when its process ends, however it ends. Whoever waits longer than
a set time gets an error that says who holds it up.

This module knows nothing about what is written.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from gritkit.errors import StoreError

_PAUSE_S = 0.01


class InUseError(StoreError):
    """Somebody else has held a knowledge base for too long."""


class FileLock:
    """A lock of the processes of one machine, by ``flock`` on a file that stays; also between threads of a process."""

    def __init__(self, path: Path, what: str) -> None:
        self._path = path
        self._what = what

    @contextlib.contextmanager
    def hold(self, *, alone: bool, wait_s: float) -> Iterator[None]:
        """Raises StoreError when it takes longer than ``wait_s`` seconds to get, or the folder cannot be written."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise StoreError(f"cannot write to {self._what}: {error.strerror or error}") from error
        try:
            self._take(handle, fcntl.LOCK_EX if alone else fcntl.LOCK_SH, wait_s)
            yield
        finally:
            os.close(handle)

    def _take(self, handle: int, kind: int, wait_s: float) -> None:
        end = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(handle, kind | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise InUseError(
                        f"{self._what} is in use: {_holder(os.fstat(handle).st_ino)} has held it for more than "
                        f"{wait_s:g} s: wait for it to finish, or stop it, and try again"
                    ) from None
                time.sleep(_PAUSE_S)
            except OSError as error:  # a file system without locks
                raise StoreError(f"cannot lock {self._what}: {error.strerror or error}") from error


def _holder(inode: int) -> str:
    """The process that holds a lock on a file, by Linux's list of locks; elsewhere nobody in particular."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()  # 1: FLOCK ADVISORY WRITE 4711 08:01:123456 0 EOF
            if fields[1] == "FLOCK" and fields[5].rsplit(":", 1)[1] == str(inode):
                command = Path(f"/proc/{fields[4]}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                return f"process {fields[4]} ({' '.join(command.split()):.60})"
    return "another process"
