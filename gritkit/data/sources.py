"""Records together with where they came from, how users name that, and the one report of everything that is wrong.

This module knows nothing about how files are read, or tokens.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from gritkit.data.records import EmbeddingRecord, GenerativeRecord, Kind
from gritkit.errors import InputError, RecordError

R = TypeVar("R", EmbeddingRecord, GenerativeRecord)
SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst", ".parquet")
"""Of the files that are read."""
_SHOWN = 20


@dataclass(frozen=True)
class Source(Generic[R]):
    """Records of one kind from one file (or list, or data set); contrastive batches come from one source each."""

    name: str
    kind: Kind
    records: Sequence[R]
    lines: Sequence[int] | None = None
    """Line (row, in Parquet) of each record in its file; None: their own numbers, from 0."""

    def where(self, index: int) -> str:
        """The place of a record, for messages."""
        return f"{self.name}:{index if self.lines is None else self.lines[index]}"


def bare_name(source: str) -> str:
    """A source's name without the suffix of its file."""
    suffix = max((suffix for suffix in SUFFIXES if source.endswith(suffix)), key=len, default="")
    return source.removesuffix(suffix)


def named(given: str, sources: Iterable[str]) -> list[str]:
    """The sources that a name means: those of exactly that name, else those of that name before the suffix.

    Raises:
        InputError: when there is none, with the names that there are.
    """
    known = sorted(set(sources))
    found = [name for name in known if name == given] or [name for name in known if bare_name(name) == given]
    if not found:
        close = difflib.get_close_matches(given, [*known, *map(bare_name, known)], n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InputError(f"no source is called {given!r}{hint} (the sources: {', '.join(known) or 'none'})")
    return found


@dataclass
class Problems:
    """Bad records of any number of files, gathered until all were read."""

    outcome: str = "nothing was trained"
    shown: list[str] = field(default_factory=list)
    total: int = 0

    def add(self, where: str, what: str) -> None:
        self.total += 1
        if self.total <= _SHOWN:
            self.shown.append(f"{where}: {what}")

    def check(self) -> None:
        """Raises RecordError listing the problems (the first 20, and how many there are), if there are any."""
        if self.total:
            more = [f"... and {self.total - len(self.shown)} more"] if self.total > len(self.shown) else []
            count = "1 bad record" if self.total == 1 else f"{self.total} bad records"
            raise RecordError("\n  ".join([f"{count}; mend or remove them, {self.outcome}:", *self.shown, *more]))
