"""Data on disk, on the hub or in memory -> sources of typed records; every bad record is reported, all at once.

Read are JSON Lines (plain, ``.gz``, ``.zst``), Parquet, a folder of such files (each is a source, in the order of their
names), a data set saved by ``datasets``, a hub id of one (its train split), and records in memory. The columns of a
file say whether it holds embedding or generative records.

This module knows nothing about tokens, batches or models.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gritkit.data.records import EmbeddingRecord, GenerativeRecord, kind_of, parse_record
from gritkit.data.sources import SUFFIXES, Problems, Source
from gritkit.errors import InputError, MissingExtraError, RecordError
from gritkit.files import resolve

Sources = list[Source[EmbeddingRecord] | Source[GenerativeRecord]]
Data = str | os.PathLike[str] | Iterable[Any]
"""A path, a hub id, sources, or an iterable of records (or of their JSON objects)."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_CHUNK = 1 << 20


class _Damaged(Exception):
    """A file that ends early or is not what its name says."""


def load(data: Data) -> Sources:
    """All sources of a training set.

    Raises:
        RecordError: naming file and line of every bad record (the first 20, and their number).
        InputError: where there is no data to read. MissingExtraError: for a format whose library is not installed.
    """
    problems = Problems()
    if isinstance(data, (str, os.PathLike)):
        sources = _from_path(data, problems)
    elif isinstance(data, (bytes, Mapping)) or not isinstance(data, Iterable):
        raise InputError(f"data must be a path, a data set's id or records, not {type(data).__name__}")
    elif isinstance(data, (list, tuple)) and data and all(isinstance(item, Source) for item in data):
        return list(data)
    else:
        sources = _sorted_kinds("records", enumerate(data), problems, one_kind=False)
        if not sources and not problems.total:
            raise InputError("data is empty: there is nothing to train on")
    problems.check()
    return sources


def _from_path(given: str | os.PathLike[str], problems: Problems) -> Sources:
    path = resolve(given)
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise InputError(f"{path.name} is none of the formats that can be read: {', '.join(SUFFIXES)}")
        return _from_file(path, problems)
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return _from_datasets(path, problems)
        files = sorted(f for f in path.iterdir() if f.name.endswith(SUFFIXES) and not f.name.startswith("."))
        if not files:
            raise InputError(
                f"{path} holds no file that can be read ({', '.join(SUFFIXES)}); folders in it are not searched"
            )
        return [source for file in files for source in _from_file(file, problems)]
    if isinstance(given, str) and _HUB_ID.fullmatch(given) and not given.endswith(SUFFIXES):
        return _from_datasets(given, problems)
    raise InputError(f"no such file or folder: {path}")


def _from_file(path: Path, problems: Problems) -> Sources:
    rows = _parquet_rows(path) if path.name.endswith(".parquet") else _json_rows(path)
    before = problems.total
    sources = _sorted_kinds(path.name, rows, problems, one_kind=True)
    if not sources and problems.total == before:
        problems.add(path.name, "the file has no records")
    return sources


def _sorted_kinds(name: str, rows: Iterator[tuple[int, Any]], problems: Problems, *, one_kind: bool) -> Sources:
    """Rows -> a source of each kind; with ``one_kind`` the first good record decides and others are problems."""
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
            kind = kind_of(record)
            if one_kind and records and kind not in records:
                problems.add(
                    f"{name}:{line}", f"a record of the {kind} kind in a file of the {next(iter(records))} kind"
                )
                continue
            records.setdefault(kind, []).append(record)
            lines.setdefault(kind, []).append(line)
    except _Damaged as error:
        problems.add(f"{name}:{line}", f"{error} after this line" if line else str(error))
    result: Sources = []
    for kind in ("embedding", "generative"):
        if kind in records:
            result.append(Source(name, kind, records[kind], lines[kind]))
    return result


# -- JSON Lines --------------------------------------------------------------------------------------------------


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line from 1, object or the RecordError that it is)."""
    for number, line in enumerate(_lines(_chunks(path)), 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        if number == 1 and line.lstrip().startswith(b"["):
            yield number, RecordError("a JSON array, not JSON Lines: write one object to a line")
            return
        try:
            yield number, json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            yield number, RecordError(f"not UTF-8 (byte {error.start} of the line)")
        except (ValueError, RecursionError) as error:
            yield number, RecordError(f"not JSON: {error or 'nested too deeply'}")


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines ended by \\n alone: str.splitlines would also split at characters that JSON allows inside strings."""
    rest: list[bytes] = []
    damage: _Damaged | None = None
    while True:
        try:
            chunk = next(chunks, None)
        except _Damaged as error:
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
        raise _Damaged("the gzip file ends too early") from None
    except (OSError, zlib.error) as error:
        raise _Damaged(f"cannot be read: {error}") from None


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
        raise _Damaged(f"cannot be read: {error}") from None
    if not frame.eof:  # zstandard's own reader would take a torn file for a finished one
        raise _Damaged("the zst file ends too early")


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
        raise _Damaged(f"cannot be read: {str(error).splitlines()[0]}") from None


def _from_datasets(source: str | Path, problems: Problems) -> Sources:
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("datasets", "train") from None
    try:
        if isinstance(source, Path):
            loaded = datasets.load_from_disk(str(source))
        else:
            loaded = datasets.load_dataset(source, split="train")
    except Exception as error:  # the library raises whatever its many back ends do
        raise InputError(f"cannot load the data set {source}: {str(error).splitlines()[0]:.200}") from None
    if isinstance(loaded, Mapping):
        if "train" not in loaded:
            raise InputError(f"the data set {source} has no train split; it has {', '.join(loaded)}")
        loaded = loaded["train"]
    name = source.name if isinstance(source, Path) else source
    before = problems.total
    sources = _sorted_kinds(name, enumerate(loaded), problems, one_kind=True)
    if not sources and problems.total == before:
        problems.add(name, "the data set has no records")
    return sources
