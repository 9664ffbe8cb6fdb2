"""How fast this machine loads key-values and reads tokens: what a load-or-recompute decision goes by.

Rates are measured on the way, never guessed: from every load and every pass over a prompt, as moving averages that
forget old circumstances. Without a measurement there is no estimate, and nothing is decided by it.

This module knows nothing about models, blocks or answers.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
from pathlib import Path

from gritkit.files import write_atomic

_KEEP = 0.7
"""Share of the old average that a new measurement leaves."""
_LEAST = {"prefill": 64, "disk": 1 << 16}
"""Tokens or bytes below which the fixed costs of a call would be measured, not its rate."""


class Rates:
    """Moving averages of tokens/s (``prefill``) and bytes/s (``disk``), kept in a file of this machine and model."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._rates: dict[str, float] = {}
        with contextlib.suppress(OSError, ValueError, RecursionError):
            found = json.loads(file.read_bytes())
            if isinstance(found, dict):
                self._rates = {name: float(found[name]) for name in _LEAST if _usable(found.get(name))}
        self._changed = False

    def measured(self, what: str, amount: int, seconds: float) -> None:
        """Take a measurement in: ``amount`` tokens or bytes in so many seconds."""
        if amount < _LEAST[what] or not seconds > 0:
            return
        rate = amount / seconds
        with self._lock:
            old = self._rates.get(what)
            self._rates[what] = rate if old is None else _KEEP * old + (1 - _KEEP) * rate
            self._changed = True

    def seconds(self, what: str, amount: int) -> float | None:
        """How long that would take; None where nothing was measured yet."""
        rate = self._rates.get(what)
        return None if rate is None else amount / rate

    def save(self) -> None:
        """Write what was measured for the next start, but where the folder is gone; a disk that refuses is no error."""
        if self._changed and self._file.parent.is_dir():
            with contextlib.suppress(OSError):
                write_atomic(self._file, json.dumps(self._rates).encode())
            self._changed = False


def _usable(rate: object) -> bool:
    return isinstance(rate, (int, float)) and rate is not True and math.isfinite(rate) and rate > 0
