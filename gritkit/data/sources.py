"""Records together with where they came from, and the one report of everything that is wrong with them.

This module knows nothing about file formats or tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from gritkit.data.records import EmbeddingRecord, GenerativeRecord, Kind
from gritkit.errors import RecordError

R = TypeVar("R", EmbeddingRecord, GenerativeRecord)
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


@dataclass
class Problems:
    """Bad records of any number of files, gathered until all were read."""

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
            raise RecordError("\n  ".join([f"{count}; mend or remove them, nothing was trained:", *self.shown, *more]))
