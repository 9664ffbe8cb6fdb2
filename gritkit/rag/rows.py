"""Files of rows -> their texts, a row at a time: JSON lines, and tables with a header (CSV, TSV).

Only one row is in memory, whatever the size of the file. A row that cannot be used is named by its line and passed
over; a file of nothing else is given up.

This module knows nothing about folders, paths or knowledge bases.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from gritkit.errors import InputError

MAX_BAD_ROWS = 1000
"""Rows one after the other that cannot be used before a file is given up."""
_PIECE = 1 << 20


@dataclass(frozen=True)
class Row:
    """A text with what stands beside it."""

    line: int
    text: str
    id: str | None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used."""

    line: int
    reason: str


def read_rows(file: BinaryIO, suffix: str, text_field: str, max_bytes: int) -> Iterator[Row | BadRow]:
    """The rows of an open file by its suffix: .jsonl, .ndjson, .csv, .tsv.

    Raises:
        InputError: for a file that is not UTF-8 or has no such column, a row of a table longer than ``max_bytes``, or
            when too many rows one after the other are bad.
    """
    if suffix in (".csv", ".tsv"):
        rows = _table_rows(file, text_field, max_bytes, "\t" if suffix == ".tsv" else ",")
    else:
        rows = _json_rows(file, text_field, max_bytes)
    bad = 0
    for row in rows:
        yield row
        bad = bad + 1 if isinstance(row, BadRow) else 0
        if bad == MAX_BAD_ROWS:
            raise InputError(f"has {bad} bad rows one after the other, to line {row.line}: the rest is left out")


def _lines(file: BinaryIO, max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """(number, line), None for one that is too long. Raises InputError for what is no text."""
    number = 0
    while line := file.readline(max_bytes + 1):
        number += 1
        if number == 1:
            if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise InputError("is UTF-16: convert it to UTF-8 first")
            line = line.removeprefix(b"\xef\xbb\xbf")
        if b"\0" in line:
            raise InputError(f"is not text: it has a zero byte on line {number}")
        if len(line) > max_bytes and not line.endswith(b"\n"):
            while (rest := file.readline(_PIECE)) and not rest.endswith(b"\n"):
                pass
            yield number, None
        else:
            yield number, line


def _too_long(max_bytes: int) -> str:
    return f"is longer than {max_bytes / 1e6:g} MB: split it, or raise max_file_bytes"


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"is not UTF-8 text (byte 0x{error.object[error.start]:02x}): convert the file to UTF-8 first"


# -- JSON lines --------------------------------------------------------------------------------------------------


def _json_rows(file: BinaryIO, text_field: str, max_bytes: int) -> Iterator[Row | BadRow]:
    for number, line in _lines(file, max_bytes):
        try:
            if line is None:
                raise InputError(_too_long(max_bytes))
            if line.strip():
                yield _json_row(number, line, text_field)
        except InputError as error:
            yield BadRow(number, str(error))


def _json_row(number: int, line: bytes, text_field: str) -> Row:
    """A row's id is its ``id``; its other plain fields are metadata."""
    try:
        row = json.loads(line.decode(), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise InputError(_not_utf8(error)) from None
    except json.JSONDecodeError as error:
        raise InputError(f"is not JSON: {error.msg} at character {error.colno}") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, brackets without end
        raise InputError(f"is not JSON that can be read: {error}") from None
    if not isinstance(row, dict) or not isinstance(row.get(text_field), str):
        raise InputError(f"has no text in the field {text_field!r}{_instead(row, text_field)}")
    text = row.pop(text_field)
    if not text.strip():
        raise InputError(f"has nothing in the field {text_field!r}")
    own = row.pop("id", None)
    if own is not None and (isinstance(own, bool) or not isinstance(own, (str, int, float))):
        raise InputError(f"has an id that is no text or number: {own!r:.60}")
    extra = {key: value for key, value in row.items() if isinstance(value, (str, int, float))}
    return Row(number, text, None if own in (None, "") else str(own), extra)


def _instead(row: Any, field: str) -> str:
    """What a row has that has no text in a field."""
    if not isinstance(row, dict) or not row:
        return ": it is no object with fields"
    if field not in row:
        return f": it has {_names(row)}"
    shown = json.dumps(row[field])
    return f" but {shown if len(shown) <= 60 else shown[:60] + ' ...'}"


def _no_constant(name: str) -> Any:
    raise ValueError(f"JSON has no {name}")


def _names(names: Any) -> str:
    shown = ", ".join(map(str, names))
    return shown if len(shown) <= 200 else shown[:200] + " ..."


# -- tables ------------------------------------------------------------------------------------------------------


class _Feed:
    """Lines for the csv module, which may join several to one row; ``used`` bytes since ``begin``, its first line."""

    def __init__(self, file: BinaryIO, max_bytes: int) -> None:
        self._lines = _lines(file, max_bytes)
        self._max_bytes = max_bytes
        self.line = 0
        self.begin = 1
        self.used = 0

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        self.line, line = next(self._lines)
        self.used += len(line or b"")
        if line is None or self.used > self._max_bytes:
            raise InputError(f"has a row at line {self.begin} that {_too_long(self._max_bytes)}; is a quote left open?")
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"has a line {self.line} that {_not_utf8(error)}") from None


def _table_rows(file: BinaryIO, text_field: str, max_bytes: int, delimiter: str) -> Iterator[Row | BadRow]:
    """The first row names the columns; ``id`` is a row's id, other columns are metadata."""
    csv.field_size_limit(max(csv.field_size_limit(), max_bytes))  # the feed keeps to the limit, by rows
    feed = _Feed(file, max_bytes)
    header: list[str] = []
    for number, fields in _fields(feed, delimiter):
        if isinstance(fields, str):
            if not header:
                raise InputError(f"has no header: line {number} {fields}")
            yield BadRow(number, fields)
        elif not header:
            header = [name.strip() for name in fields]
            if text_field not in header:
                raise InputError(f"has no column {text_field!r}: its first row has {_names(header)}")
            if len(set(header)) < len(header):
                raise InputError(f"has two columns of one name: {_names(header)}")
        elif len(fields) > len(header):
            yield BadRow(number, f"has {len(fields)} fields, and the header {len(header)}")
        else:
            row = dict(zip(header, fields, strict=False))
            text = row.pop(text_field, "")
            if text.strip():
                own = row.pop("id", "").strip()
                yield Row(number, text, own or None, {key: value for key, value in row.items() if key and value})
            else:
                yield BadRow(number, f"has nothing in the column {text_field!r}")


def _fields(feed: _Feed, delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """(line it begins on, the fields of a row or what is wrong with it); empty rows are left out."""
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    while True:
        feed.begin, feed.used = feed.line + 1, 0
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield feed.begin, f"is no row of a table: {error}"
            continue
        if any(name.strip() for name in fields):
            yield feed.begin, fields
