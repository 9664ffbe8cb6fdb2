"""Files of examples -> checked rows: every wrong value is named with its file and line, all at once.

This module knows nothing about tasks or models.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gritkit.data.reading import DamagedFile, file_rows
from gritkit.data.sources import Problems
from gritkit.errors import InputError, RecordError
from gritkit.tokens import check_text

Fields = Mapping[str, Any]
Check = Callable[[Any, Fields], str | None]
"""What is wrong with a value of a row; None where it is good."""


@dataclass(frozen=True)
class Row:
    """One example."""

    number: int
    """Its place among the examples of the file, from 0."""
    line: int
    fields: Fields

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]


def read(path: Path, checks: Mapping[str, Check]) -> list[Row]:
    """All rows of a file.

    Raises:
        RecordError: naming file and line of every bad value (the first 20, and their number).
        InputError: where there is no such file.
    """
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    problems, rows, line = Problems(), list[Row](), 0
    try:
        for line, row in file_rows(path):
            wrong = _wrong(row, checks)
            if wrong:
                problems.add(f"{path.name}:{line}", wrong)
            else:
                rows.append(Row(len(rows), line, row))
    except DamagedFile as error:
        problems.add(f"{path.name}:{line}", f"{error} after this line" if line else str(error))
    if not rows and not problems.total:
        problems.add(path.name, "the file has no examples")
    problems.check()
    return rows


def _wrong(row: Any, checks: Mapping[str, Check]) -> str | None:
    if isinstance(row, RecordError):
        return str(row)
    if not isinstance(row, dict):
        return f"the record is {type(row).__name__}, not an object: {row!r:.80}"
    for name, check in checks.items():
        if name not in row:
            return f"the record has no {name} (its columns: {', '.join(map(str, list(row)[:8])) or 'none'})"
        wrong = check(row[name], row)
        if wrong:
            return f"{name} {wrong}: {row[name]!r:.80}"
    return None


def digest(*paths: Path) -> str:
    """Of the contents of some files."""
    made = hashlib.sha256()
    for path in paths:
        made.update(hashlib.sha256(path.read_bytes()).digest())
    return made.hexdigest()[:16]


# -- what values must be ----------------------------------------------------------------------------------------------


def any_text(value: Any, _: Fields) -> str | None:
    """A text, perhaps empty."""
    try:
        check_text(value, "it")
    except InputError:
        return "is not text"
    return None


def text(value: Any, row: Fields) -> str | None:
    """A text with something in it."""
    return any_text(value, row) or (None if value.strip() else "is empty")


def texts(value: Any, row: Fields) -> str | None:
    """One text or more."""
    if not isinstance(value, list) or not value:
        return "is not a list of texts"
    return next((wrong for wrong in (text(one, row) for one in value) if wrong), None)


def choices(value: Any, row: Fields) -> str | None:
    """Two texts or more; what the answer counts."""
    return texts(value, row) or (None if len(value) > 1 else "is no choice: there is one")


def index(value: Any, row: Fields) -> str | None:
    """The number of the right choice."""
    size = len(row["choices"]) if isinstance(row.get("choices"), list) else 2
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < size:
        return f"is not the number of a choice, 0 to {size - 1}"
    return None


def truth(value: Any, _: Fields) -> str | None:
    """True or false."""
    return None if isinstance(value, bool) else "is neither true nor false"


def number(value: Any, row: Fields) -> str | None:
    """A text that spells a finite number."""
    wrong = text(value, row)
    if wrong:
        return wrong
    try:
        return None if math.isfinite(float(value.replace(",", ""))) else "is not a finite number"
    except ValueError:
        return "is not a number"
