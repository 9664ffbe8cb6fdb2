"""Running a program that a model wrote: in a process of its own that can reach and take as little as the system allows.

The process (:mod:`gritkit_eval.generation.sandbox_jail`) has an empty environment, an empty folder, limits of processor
time, memory and file size, and is killed when its time is up. On Linux it also cannot start processes or open sockets
(seccomp), writes to no file or device outside its folder (Landlock), and sees the file system read-only and no network
(namespaces), as far as the machine permits: what holds is in :attr:`Ran.holds`, and :func:`check` refuses to go without
what must. This confines careless programs, and most hostile ones; it is no wall against a studied attack.

A program has passed when its last statement was reached: then the jail writes a random word that it was given. One that
looks for the word in the jail's own frames finds it: who writes such programs can cheat, and a model that does not
know of it will not.

This module knows nothing about tasks or models.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from gritkit.errors import InputError

JAIL = Path(__file__).with_name("sandbox_jail.py")
Ending = Literal["passed", "failed", "out of time"]
ALL = ("no processes", "no sockets", "read-only files", "no devices", "no network")
"""What can hold beside the limits."""
NEEDED = ("no processes", "no sockets", "read-only files")
"""Without these a program reaches other files, processes and machines."""
_REPLY = 1 << 12
"""Bytes that are read of what comes back; more is a flood."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program may take."""

    seconds: float = 10.0
    """Of the clock; of the processor as many."""
    memory: int = 1 << 30
    """Bytes of address space."""
    disk: int = 16 << 20
    """Bytes of a file, and of its folder where that is a file system of its own."""


@dataclass(frozen=True)
class Ran:
    """What came of a program."""

    ending: Ending
    holds: tuple[str, ...]
    """Which of :data:`ALL` held."""

    @property
    def passed(self) -> bool:
        return self.ending == "passed"


def run(program: str, limits: Limits | None = None) -> Ran:
    """Run a Python program to its end."""
    limits = limits or Limits()
    word = secrets.token_hex(16)
    given = json.dumps({"program": program, "word": word}).encode()
    with tempfile.TemporaryDirectory(prefix="gritkit-code-", ignore_cleanup_errors=True) as folder:
        reading, writing = os.pipe()
        setting = {"folder": folder, "seconds": limits.seconds, "memory": limits.memory, "disk": limits.disk}
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", str(JAIL), str(writing), json.dumps(setting)],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                cwd=folder, env={}, pass_fds=(writing,), start_new_session=True,
            )  # fmt: skip
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        try:
            reply, in_time = _talk(process, given, reading, time.monotonic() + limits.seconds)
        finally:
            os.close(reading)
            with contextlib.suppress(OSError):
                os.killpg(process.pid, 9)
            process.wait()
    said, _, ended = reply.partition(b"\n")
    held = tuple(name for name in ALL if name in said.decode("ascii", "replace").split(", "))
    if ended == f"{word}\n".encode():
        return Ran("passed", held)
    return Ran("failed" if in_time else "out of time", held)


def _talk(process: subprocess.Popen[bytes], given: bytes, reading: int, until: float) -> tuple[bytes, bool]:
    """(what the jail wrote, whether it ended before its time was up)."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as file:
        file.write(given)
    reply = b""
    with selectors.DefaultSelector() as selector:
        selector.register(reading, selectors.EVENT_READ)
        while (left := until - time.monotonic()) > 0:
            if not selector.select(left):
                continue
            new = os.read(reading, _REPLY)
            reply += new
            if not new or len(reply) > _REPLY:
                return reply, True
    return reply, False


@cache
def missing() -> tuple[str, ...]:
    """What of :data:`ALL` this machine does not permit."""
    holds = run("").holds
    return tuple(name for name in ALL if name not in holds)


def check(*, unconfined: bool) -> None:
    """Raises InputError where programs would not be confined, unless that is what was asked for."""
    lacking = [name for name in NEEDED if name in missing()]
    if lacking and not unconfined:
        raise InputError(
            f"this machine cannot confine programs ({', '.join(lacking)} is not to be had): use a Linux with Landlock, "
            "or give --unconfined to run what a model writes all the same"
        )
