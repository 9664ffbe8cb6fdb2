"""Contestants in processes of their own, run in turn, round after round.

Each contestant is a worker script with its own Python, so peers with conflicting pins stay in their own environments
and nobody's process-wide settings help or hurt another. Workers load first and then wait; a round runs each once, in an
order that rotates, so a slow spell of the machine falls on all of them. A worker speaks JSON lines on stdin and stdout
(``workers/`` has the protocol's other side). A contestant whose library is missing is a skipped row, never an error.

This module knows nothing about what is measured.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gritkit.errors import GritkitError

WORKERS = Path(__file__).parent / "workers"


@dataclass(frozen=True)
class Contestant:
    """A named way to do the job."""

    name: str
    worker: str
    """File name in ``workers/``."""
    options: dict[str, Any] = field(default_factory=dict)
    python: str = sys.executable


@dataclass(frozen=True)
class Timing:
    """Seconds of the counted runs of one contestant."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """Fastest and slowest run."""
        return min(self.seconds), max(self.seconds)

    def ratio_to(self, other: Timing) -> float:
        """How many times as fast as ``other``: the median of the ratios round by round."""
        return statistics.median(b / a for a, b in zip(self.seconds, other.seconds, strict=True))


class Running:
    """A contestant's process, loaded and waiting."""

    def __init__(self, contestant: Contestant) -> None:
        self.contestant = contestant
        self._process = subprocess.Popen(
            [contestant.python, str(WORKERS / contestant.worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        reply = self.ask(load=contestant.options)
        self.missing: str | None = reply.get("missing")
        self.versions: dict[str, str] = reply.get("versions", {})

    def ask(self, **request: Any) -> dict[str, Any]:
        """One request, one reply. Raises GritkitError when the worker died; its stderr is on ours."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise GritkitError(f"the contestant {self.contestant.name!r} ended early (its messages are above)")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def close(self) -> None:
        """End the process; it leaves when its stdin closes."""
        with contextlib.suppress(BrokenPipeError):  # dead already
            self._process.communicate(timeout=60)


def fastest(running: Running, tries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The options with which a contestant is fastest here, each loaded in turn and run once after a warm-up."""
    seconds = []
    for options in tries:
        running.ask(load=options)
        running.ask(run=True)
        seconds.append(float(running.ask(run=True)["seconds"]))
    return tries[seconds.index(min(seconds))]


def interleave(running: Sequence[Running], rounds: int) -> dict[str, Timing]:
    """One uncounted run each, then ``rounds`` counted ones in rotating order."""
    seconds: dict[str, list[float]] = {each.contestant.name: [] for each in running}
    for number in range(rounds + 1):
        turn = number % len(running)
        for each in [*running[turn:], *running[:turn]]:
            took = float(each.ask(run=True)["seconds"])
            if number:
                seconds[each.contestant.name].append(took)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}
