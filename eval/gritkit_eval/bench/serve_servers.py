"""Servers as processes: started with a free port, waited for, asked for their memory, ended by their own id.

gritkit's is the real ``gritkit serve``, the chat peer the real ``transformers serve``; the embedding peer is
sentence-transformers behind a minimal application (``workers/serve_sentence_transformers.py``). Nothing is looked up
on the network.

This module knows nothing about what is asked of them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from gritkit.errors import GritkitError
from gritkit_eval.bench.harness import WORKERS

START_S = 300.0
"""A busy machine may take a minute to import torch."""
_END_S = 60.0
_READY = {
    "gritkit": re.compile(r" is ready at (http://\S+)"),
    "uvicorn": re.compile(r"Uvicorn running on (http://\S+)"),
}
_TAIL = 20
_VERSIONS = """
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found[name] = None
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Recipe:
    """How a server is started."""

    name: str
    command: Sequence[str]
    says: str = "uvicorn"
    """Whose words tell that it is ready, and where."""
    environment: Mapping[str, str] = field(default_factory=dict)


class Server:
    """One server's process; ready when this has been made, gone when it is closed.

    Raises:
        GritkitError: with its last words, when it ends before or does not come up in time.
    """

    def __init__(self, recipe: Recipe, *, limit_s: float = START_S) -> None:
        self.name = recipe.name
        self._ready = _READY[recipe.says]
        self._url: str | None = None
        self._told = threading.Event()
        """It is ready, or will say nothing more."""
        self._tail: deque[str] = deque(maxlen=_TAIL)
        self._process = subprocess.Popen(
            list(recipe.command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **recipe.environment},
        )
        self._reader = threading.Thread(target=self._read, name=f"output of {recipe.name}", daemon=True)
        self._reader.start()
        ended = self._told.wait(limit_s)
        if self._url is None:
            self.close()
            what = "ended before it was ready" if ended else f"was not ready within {limit_s:.0f} s"
            raise GritkitError(f"{self.name} {what}: {self.last_words}")

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        assert self._url is not None
        return self._url

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def last_words(self) -> str:
        return " | ".join(line.strip() for line in self._tail if line.strip())[-2000:] or "it said nothing"

    def close(self, *, limit_s: float = _END_S) -> int:
        """End it by SIGTERM, and by SIGKILL when it does not heed that in time. Returns its exit code."""
        self._process.terminate()
        try:
            code = self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._reader.join(_END_S)
        return code

    def _read(self) -> None:
        """All it says, so that it never waits for a reader; the last lines are kept."""
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._tail.append(line)
                if self._url is None and (found := self._ready.search(line)):
                    self._url = found.group(1)
                    self._told.set()
        self._told.set()


# -- the contestants ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loading:
    """How every server holds the model."""

    dtype: str
    device: str

    @property
    def options(self) -> list[str]:
        return ["--dtype", self.dtype, "--device", self.device]


_LOCAL = ["--host", "127.0.0.1", "--port", "0"]


def gritkit(folder: Path, loading: Loading, *, slots: int | None = None, kb: Path | None = None) -> Recipe:
    """``gritkit serve`` with its defaults."""
    command = [sys.executable, "-m", "gritkit", "serve", str(folder), *_LOCAL, *loading.options]
    command += [] if slots is None else ["--slots", str(slots)]
    command += [] if kb is None else ["--kb", str(kb)]
    return Recipe("gritkit serve", command, "gritkit", {"GRITKIT_API_KEY": ""})


def transformers(folder: Path, loading: Loading, *, python: str, batching: Sequence[str] | None = None) -> Recipe:
    """``transformers serve``; with ``batching`` (options, or none) requests decode together, else one after another."""
    command = [str(Path(python).with_name("transformers")), "serve", str(folder), *_LOCAL, *loading.options]
    if batching is None:
        return Recipe("transformers serve", command)
    return Recipe("transformers serve, continuous batching", [*command, "--continuous-batching", *batching])


def sentence_transformers(folder: Path, loading: Loading, *, python: str) -> Recipe:
    """sentence-transformers behind FastAPI."""
    worker = str(WORKERS / "serve_sentence_transformers.py")
    return Recipe("sentence-transformers", [python, worker, str(folder), loading.dtype, loading.device])


NEEDED = {
    "transformers serve": ("transformers", "torch", "fastapi", "uvicorn", "openai"),
    "sentence-transformers": ("sentence-transformers", "torch", "fastapi", "uvicorn"),
}
"""Peer -> the packages that it needs."""


def versions_of(python: str, packages: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """(versions of packages in that Python's environment, those that it lacks)."""
    ran = subprocess.run([python, "-c", _VERSIONS, *packages], capture_output=True, text=True, timeout=START_S)
    if ran.returncode:
        raise GritkitError(f"{python} cannot be run: {ran.stderr.strip()[-300:]}")
    found: dict[str, str | None] = json.loads(ran.stdout)
    return {name: version for name, version in found.items() if version}, [n for n, v in found.items() if not v]


# -- memory ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Bytes in memory."""

    total: int
    """Of processes that have the machine to themselves: what each has of its own, and files that they map, once."""
    private: int
    """Of pages that nobody shares (USS)."""


_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ ([0-9a-f]+) (\S+) (\d+)")


def memory_of(pids: Sequence[int], proc: Path = Path("/proc")) -> Memory | None:
    """What processes take together; None where the system does not tell (it is not Linux).

    PSS would share out libraries among all processes that happen to run, other contestants too. So pages of files count
    here in full, but once for all of the given processes.
    """
    if not (proc / "self" / "smaps").is_file():
        return None
    private, anonymous = 0, 0
    files: dict[tuple[str, ...], int] = {}
    for pid in pids:
        place: tuple[str, ...] | None = None
        resident = 0
        for line in (proc / str(pid) / "smaps").read_text(encoding="utf-8", errors="replace").splitlines():
            if found := _MAPPING.match(line):
                offset, device, inode = found.groups()
                place = None if inode == "0" else (device, inode, offset)
                continue
            name, _, value = line.partition(":")
            if name == "Rss":
                resident = _bytes(value)
            elif name in ("Private_Clean", "Private_Dirty"):
                private += _bytes(value)
            elif name == "Anonymous":
                anonymous += _bytes(value)
                if place is not None:
                    files[place] = max(files.get(place, 0), resident - _bytes(value))
    return Memory(anonymous + sum(files.values()), private)


def _bytes(value: str) -> int:
    return int(value.split()[0]) * 1024
