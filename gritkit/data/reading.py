"""Data on disk, on the hub or in memory -> sources of typed records; every bad record is reported, all at once.

Read are JSON Lines (plain, ``.gz``, ``.zst``), Parquet, a folder of such files (each is a source, in the order of their
names), a data set saved by ``datasets``, a hub id of one (its train split), and records in memory. The columns of a
file say whether it holds embedding or generative records.

This module knows nothing about tokens, batches or models.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from gritkit.data.records import EmbeddingRecord, GenerativeRecord, Kind, kind_of, parse_record
from gritkit.data.sources import SUFFIXES, Problems, Source
from gritkit.errors import InputError, MissingExtraError, RecordError
from gritkit.files import resolve

Sources = list[Source[EmbeddingRecord] | Source[GenerativeRecord]]
Data = str | os.PathLike[str] | Iterable[Any]
"""A path, a hub id, sources, or an iterable of records (or of their JSON objects)."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_CHUNK = 1 << 20
_ARRAY = RecordError("a JSON array, not JSON Lines: write one object to a line")


class DamagedFile(Exception):
    """A file that ends early or is not what its name says."""


def load(data: Data) -> Sources:
    """All sources of a training set.

    Raises:
        RecordError: naming file and line of every bad record (the first 20, and their number).
        InputError: where there is no data to read. MissingExtraError: for a format whose library is not installed.
    """
    problems = Problems()
    if isinstance(data, (str, os.PathLike)):
        sources = [source for place in located(data) for source in _from_place(place, problems)]
    elif isinstance(data, (bytes, Mapping)) or not isinstance(data, Iterable):
        raise InputError(f"data must be a path, a data set's id or records, not {type(data).__name__}")
    elif isinstance(data, (list, tuple)) and data and all(isinstance(item, Source) for item in data):
        return list(data)
    else:
        sources = sorted_kinds("records", enumerate(data), problems, one_kind=False)
        if not sources and not problems.total:
            raise InputError("data is empty: there is nothing to train on")
    problems.check()
    return sources


def located(given: str | os.PathLike[str]) -> list[Path | str]:
    """Where a training set is: its files, the folder of a saved data set, or the hub id of one (a str).

    Raises InputError where there is nothing that can be read.
    """
    path = resolve(given)
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise InputError(f"{path.name} is none of the formats that can be read: {', '.join(SUFFIXES)}")
        return [path]
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return [path]
        files = sorted(f for f in path.iterdir() if f.name.endswith(SUFFIXES) and not f.name.startswith("."))
        if not files:
            raise InputError(
                f"{path} holds no file that can be read ({', '.join(SUFFIXES)}); folders in it are not searched"
            )
        return list(files)
    if isinstance(given, str) and _HUB_ID.fullmatch(given) and not given.endswith(SUFFIXES):
        return [given]
    raise InputError(f"no such file or folder: {path}")


def _from_place(place: Path | str, problems: Problems) -> Sources:
    name = place if isinstance(place, str) else place.name
    if isinstance(place, Path) and place.is_file():
        what, rows = "file", file_rows(place)
    else:
        what, rows = "data set", enumerate(data_set(place))
    before = problems.total
    sources = sorted_kinds(name, rows, problems)
    if not sources and problems.total == before:
        problems.add(name, f"the {what} has no records")
    return sources


def sorted_kinds(
    name: str,
    rows: Iterable[tuple[int, Any]],
    problems: Problems,
    *,
    one_kind: bool = True,
    kind: Kind | None = None,
) -> Sources:
    """Rows with their lines -> a source of each kind. With ``one_kind`` records of another kind than ``kind`` are
    problems (where that is not given, than the first good record)."""
    records: dict[str, list[Any]] = {}
    lines: dict[str, list[int]] = {}
    line = 0
    try:
        for line, row in rows:
            if isinstance(row, RecordError):
                problems.add(f"{name}:{line}", str(row))
                continue
            try:
                record = row if isinstance(row, (EmbeddingRecord, GenerativeRecord)) else parse_record(row)
            except RecordError as error:
                problems.add(f"{name}:{line}", str(error))
                continue
            found = kind_of(record)
            kind = kind or found
            if one_kind and found != kind:
                problems.add(f"{name}:{line}", f"a record of the {found} kind in a file of the {kind} kind")
                continue
            records.setdefault(found, []).append(record)
            lines.setdefault(found, []).append(line)
    except DamagedFile as error:
        problems.add(f"{name}:{line}", f"{error} after this line" if line else str(error))
    result: Sources = []
    for known in get_args(Kind):
        if known in records:
            result.append(Source(name, known, records[known], lines[known]))
    return result


def file_rows(path: Path, start: int = 0, step: int = 1) -> Iterator[tuple[int, Any]]:
    """(place, object or the RecordError that it is) of every ``step``-th record of a file, from number ``start``.

    The place is the line from 1, in Parquet the row from 0. Lines between are neither decoded nor parsed.
    """
    if path.name.endswith(".parquet"):
        yield from itertools.islice(_parquet_rows(path), start, None, step)
        return
    for number, line in itertools.islice(_json_lines(path), start, None, step):
        row = _parsed(number, line)
        yield number, row
        if row is _ARRAY:
            return


# -- JSON Lines --------------------------------------------------------------------------------------------------


def _json_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of those that hold something."""
    for number, line in enumerate(_lines(_chunks(path)), 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield number, line


def _parsed(number: int, line: bytes) -> Any:
    if number == 1 and line.lstrip().startswith(b"["):
        return _ARRAY
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return RecordError(f"not UTF-8 (byte {error.start} of the line)")
    except (ValueError, RecursionError) as error:
        return RecordError(f"not JSON: {error or 'nested too deeply'}")


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines ended by \\n alone: str.splitlines would also split at characters that JSON allows inside strings."""
    rest: list[bytes] = []
    damage: DamagedFile | None = None
    while True:
        try:
            chunk = next(chunks, None)
        except DamagedFile as error:
            chunk, damage = None, error
        if chunk is None:
            break
        first, *others = chunk.split(b"\n")
        rest.append(first)
        for other in others:
            yield b"".join(rest)
            rest = [other]
    if damage is not None:  # the last, torn line is not worth a second message
        raise damage
    if any(rest):
        yield b"".join(rest)


def _chunks(path: Path) -> Iterator[bytes]:
    if path.name.endswith(".zst"):
        yield from _zst_chunks(path)
        return
    opener: Any = gzip.open if path.name.endswith(".gz") else open
    try:
        with opener(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except EOFError:
        raise DamagedFile("the gzip file ends too early") from None
    except (OSError, zlib.error) as error:
        raise DamagedFile(f"cannot be read: {error}") from None


def _zst_chunks(path: Path) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError:
        raise MissingExtraError("zstandard", "train") from None
    decompressor = zstandard.ZstdDecompressor()
    frame = decompressor.decompressobj()
    try:
        with path.open("rb") as file:
            while data := file.read(_CHUNK):
                while data:
                    if frame.eof:
                        frame = decompressor.decompressobj()
                    yield frame.decompress(data)
                    data = frame.unused_data if frame.eof else b""
    except (OSError, zstandard.ZstdError) as error:
        raise DamagedFile(f"cannot be read: {error}") from None
    if not frame.eof:  # zstandard's own reader would take a torn file for a finished one
        raise DamagedFile("the zst file ends too early")


# -- tables ------------------------------------------------------------------------------------------------------


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(row from 0, object)."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "train") from None
    try:
        row = 0
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for item in batch.to_pylist():
                    yield row, item
                    row += 1
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise DamagedFile(f"cannot be read: {str(error).splitlines()[0]}") from None


def data_set(source: str | Path, *, streaming: bool = False) -> Any:
    """The ``train`` split of a saved data set or, with its hub id, of one that is downloaded, or read as it comes.

    Raises InputError where it cannot be loaded, MissingExtraError where ``datasets`` is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("datasets", "train") from None
    try:
        if isinstance(source, Path):
            loaded = datasets.load_from_disk(str(source))
        else:
            loaded = datasets.load_dataset(source, split="train", streaming=streaming)
    except Exception as error:  # the library raises whatever its many back ends do
        raise InputError(f"cannot load the data set {source}: {str(error).splitlines()[0]:.200}") from None
    if isinstance(loaded, Mapping):
        if "train" not in loaded:
            raise InputError(f"the data set {source} has no train split; it has {', '.join(loaded)}")
        loaded = loaded["train"]
    return loaded
