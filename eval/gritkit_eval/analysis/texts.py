"""Every text of data files, of whatever layout, with the place where it stands.

A text is any string in a row, however deep: ``query``, the entries of ``pos``, the ``content`` of messages, a column
``sentence1``. Left out are columns that name or sort rows (ids, labels, roles, subsets): they repeat between any two
files and say nothing.

This module knows nothing about what texts are compared for.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gritkit.data.reading import DamagedFile, data_set, file_rows, located
from gritkit.data.sources import Problems, bare_name
from gritkit.errors import InputError, RecordError
from gritkit.tokens import check_text

T = TypeVar("T")
NAMES = frozenset(
    (
        "_id", "id", "key", "uid", "query_id", "corpus_id", "pos_ids", "neg_ids", "doc_id", "task_id", "task",
        "task_type", "label", "label_name", "fine_label", "labels", "role", "lang", "language", "subset", "split",
        "dataset", "genre", "type", "qtype", "category", "source", "year", "license", "url",
    )
)  # fmt: skip
"""Columns whose strings are no texts."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a text stands."""

    file: str
    line: int
    """From 1; the row from 0 in Parquet and saved data sets."""
    field: str
    """As in ``pos[0]`` or ``messages[1].content``."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.field}"


@dataclass(frozen=True, slots=True)
class Text:
    """A text and its place."""

    text: str
    place: Place


@dataclass(frozen=True)
class DataFile:
    """One file of rows, or a data set saved or named."""

    source: Path | str
    name: str
    """For people: the folder and the file without its suffix."""

    @staticmethod
    def of(source: Path | str) -> DataFile:
        if isinstance(source, str):
            return DataFile(source, source)
        name = bare_name(source.name)
        return DataFile(source, f"{source.parent.name}/{name}" if source.parent.name else name)

    def rows(self) -> Iterator[tuple[int, Any]]:
        """(line, row or the RecordError that it is). Raises DamagedFile for one that ends early."""
        if isinstance(self.source, Path) and self.source.is_file():
            yield from file_rows(self.source)
        else:
            yield from enumerate(data_set(self.source))


def data_files(given: Iterable[Path | str]) -> list[DataFile]:
    """The files that paths and folders stand for. Raises InputError where there is nothing to read."""
    return [DataFile.of(place) for path in given for place in located(path)]


def digest(files: Sequence[DataFile]) -> str:
    """A digest of what the files hold, whatever they are called; of a data set, of its rows."""
    total = hashlib.sha256()
    for file in files:
        own = hashlib.sha256()
        if isinstance(file.source, Path) and file.source.is_file():
            try:
                with file.source.open("rb") as opened:
                    while chunk := opened.read(1 << 20):
                        own.update(chunk)
            except OSError as error:
                raise InputError(f"cannot read {file.source}: {error}") from None
        else:
            for _, row in file.rows():
                own.update(repr(row).encode("utf-8", "surrogatepass"))
        total.update(own.digest())
    return total.hexdigest()[:32]


def rows_of(file: DataFile, problems: Problems, *, limit: int | None = None) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line, object) of the first ``limit`` rows of a file; what is none goes to the problems."""
    line = 0
    try:
        for line, row in itertools.islice(file.rows(), limit):
            if isinstance(row, RecordError):
                problems.add(f"{file.name}:{line}", str(row))
            elif isinstance(row, Mapping):
                yield line, row
            else:
                problems.add(f"{file.name}:{line}", f"the row is {type(row).__name__}, not an object: {row!r:.80}")
    except DamagedFile as error:
        problems.add(f"{file.name}:{line}", f"{error} after this line" if line else str(error))


def texts_of(file: DataFile, problems: Problems, *, limit: int | None = None) -> Iterator[Text]:
    """Every text of a file's first ``limit`` rows, in its order; what is wrong goes to the problems."""
    for line, row in rows_of(file, problems, limit=limit):
        try:
            for field, value in strings(row):
                yield Text(check_text(value, field), Place(file.name, line, field))
        except InputError as error:
            problems.add(f"{file.name}:{line}", str(error))
        except RecursionError:
            problems.add(f"{file.name}:{line}", "nested too deeply")


def strings(value: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """(field, text) of every string in a row but those of :data:`NAMES`."""
    if isinstance(value, str):
        yield field, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if str(name).lower() not in NAMES:
                yield from strings(inner, f"{field}.{name}" if field else str(name))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from strings(inner, f"{field}[{index}]")


def sampled(stream: Iterable[T], size: int, seed: int) -> list[T]:
    """``size`` items of a stream, each as likely as any other, in its order (Vitter 1985, algorithm R)."""
    draw = random.Random(seed)
    kept: list[tuple[int, T]] = []
    for number, item in enumerate(stream):
        if number < size:
            kept.append((number, item))
        elif (place := draw.randrange(number + 1)) < size:
            kept[place] = (number, item)
    return [item for _, item in sorted(kept, key=lambda pair: pair[0])]
