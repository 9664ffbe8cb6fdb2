"""A knowledge base as one portable file, and back.

A zip without compression: ``archive.json`` (counts and the manifest), ``rows/000000.parquet`` ... (whole documents,
uncompressed Parquet, readable by other tools) and, when asked for, ``blocks/KEY``:

    block    length of the header (8, little-endian) | header (JSON: fields, dtype and shape of each array) | arrays

A file may come from anyone: names, sizes, counts and every value are checked before use, nothing is written to a path
that it names, and nothing decodes to more than its own size.

This module knows nothing about stores or where the rows go.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from gritkit.errors import MissingExtraError, StoreError
from gritkit.files import sync_folder
from gritkit.kv.blocks import Block
from gritkit.rag.checking import by_document, faults
from gritkit.rag.manifest import Manifest
from gritkit.rag.store import Row

ARCHIVE_VERSION = 1
_HEAD = "archive.json"
_HEAD_BYTES = 1 << 16
_ROWS_PER_FILE = 512
_ENTRY = re.compile(r"archive\.json|rows/\d{6,9}\.parquet|blocks/[0-9a-f]{64}")
_LENGTH = struct.Struct("<Q")
_DTYPES = {"int8", "uint8", "int16", "uint16", "int32", "int64", "float16", "float32", "float64"}
_COUNTS = ("documents", "chunks", "blocks", "row_files")


def write_archive(
    path: Path,
    manifest: Manifest,
    documents: Iterable[Sequence[Row]],
    get: Callable[[str], Block | None] | None,
) -> None:
    """Write documents, the chunks of each together, and with ``get`` their blocks; the file is whole or absent."""
    counts = dict.fromkeys(_COUNTS, 0)
    keys: set[str] = set()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _written(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as zipped:
            for rows, count in _packed(documents):
                zipped.writestr(f"rows/{counts['row_files']:06}.parquet", _parquet(rows, manifest.dim))
                counts["row_files"] += 1
                counts["documents"] += count
                counts["chunks"] += len(rows)
                keys |= {row.block_key for row in rows} - {""}
            for key in sorted(keys) if get else ():
                block = get(key) if get else None
                if block is not None:
                    with zipped.open(f"blocks/{key}", "w", force_zip64=True) as entry:
                        _write_block(entry, block)
                    counts["blocks"] += 1
            head = {"archive_version": ARCHIVE_VERSION, **counts, "manifest": json.loads(manifest.to_json())}
            zipped.writestr(_HEAD, json.dumps(head, indent=2))
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


class Archive:
    """An exported file, opened for reading; in a ``with`` block.

    Raises:
        StoreError: when opened or read, for what is no export, of another version, damaged or hostile.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror or error}") from error
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise self._refused(f"is no exported knowledge base ({error})") from None
        try:
            self._entries = self._checked_entries()
            head = self._head()
            self.manifest = Manifest.from_json(json.dumps(head["manifest"]), str(path))
            self.counts: dict[str, int] = {name: head[name] for name in _COUNTS}
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def documents(self) -> Iterator[list[Row]]:
        """Whole documents, some together. Raises StoreError for one with faults, a repeated one, or too few."""
        documents = chunks = 0
        seen: set[str] = set()
        names = [f"rows/{number:06}.parquet" for number in range(self.counts["row_files"])]
        for name in names:
            rows = self._rows(name)
            for parts in by_document([rows]):
                found = faults(parts, self.manifest)
                if parts[0].document in seen:
                    found = [f"document {parts[0].document!r:.100} is there twice"]
                if found:
                    raise self._refused(f"is damaged: {found[0]}")
                seen.add(parts[0].document)
            chunks += len(rows)
            documents = len(seen)
            yield rows
        if (documents, chunks) != (self.counts["documents"], self.counts["chunks"]):
            raise self._refused(f"is damaged: it has {documents} documents instead of {self.counts['documents']}")

    def blocks(self) -> Iterator[Block]:
        """Every block of it. Raises StoreError for one that is not what its name says."""
        for name in self._entries:
            if name.startswith("blocks/"):
                block = self._block(self._read(name), name)
                if f"blocks/{block.key}" != name:
                    raise self._refused(f"is damaged: {name:.20} holds another block")
                yield block

    def _checked_entries(self) -> dict[str, zipfile.ZipInfo]:
        """By name. Raises StoreError."""
        entries: dict[str, zipfile.ZipInfo] = {}
        whole = self._path.stat().st_size
        for entry in self._zip.infolist():
            if not _ENTRY.fullmatch(entry.filename) or entry.filename in entries:
                raise self._refused(f"has an entry that an export never has: {entry.filename!r:.80}")
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise self._refused(f"has a compressed entry, which an export never has: {entry.filename!r:.80}")
            entries[entry.filename] = entry
        if sum(entry.file_size for entry in entries.values()) > whole:
            raise self._refused("claims to hold more than its own size")
        return entries

    def _head(self) -> dict[str, Any]:
        if _HEAD not in self._entries or self._entries[_HEAD].file_size > _HEAD_BYTES:
            raise self._refused("is no exported knowledge base")
        try:
            head = json.loads(self._read(_HEAD))
            version, counts = head["archive_version"], [head[name] for name in _COUNTS]
            manifest = head["manifest"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise self._refused("is damaged: its description cannot be read") from None
        if version != ARCHIVE_VERSION:
            raise StoreError(
                f"{self._path} has archive format {version!r:.20} and this gritkit reads {ARCHIVE_VERSION}: "
                "use the gritkit that made it"
            )
        if not all(type(count) is int and count >= 0 for count in counts) or not isinstance(manifest, dict):
            raise self._refused("is damaged: its counts are no numbers")
        blocks = sum(name.startswith("blocks/") for name in self._entries)
        row_files = sum(name.startswith("rows/") for name in self._entries)
        if (head["blocks"], head["row_files"]) != (blocks, row_files):
            raise self._refused(f"is damaged: it has {row_files} files of rows and {blocks} blocks, not as it says")
        return dict(head)

    def _read(self, name: str) -> bytes:
        try:
            return self._zip.read(self._entries[name])
        except KeyError:
            raise self._refused(f"is damaged: {name} is missing") from None
        except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
            raise self._refused(f"is damaged: {name:.80} cannot be read ({error})") from None

    def _rows(self, name: str) -> list[Row]:
        data = self._read(name)
        try:
            return _from_parquet(data, self.manifest.dim)
        except (ValueError, TypeError, KeyError, OSError, MemoryError, AttributeError) as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise self._refused(f"is damaged: {name} cannot be read ({line:.200})") from None

    def _block(self, data: bytes, name: str) -> Block:
        try:
            (length,) = _LENGTH.unpack(data[: _LENGTH.size])
            start = _LENGTH.size + length
            header = json.loads(data[_LENGTH.size : start])
            arrays = []
            for described in header["arrays"]:
                if described["dtype"] not in _DTYPES:
                    raise ValueError("unknown type of numbers")
                dtype = np.dtype(described["dtype"])
                shape = [int(size) for size in described["shape"]]
                count = 1
                for size in shape:
                    count *= size
                if min(shape, default=0) < 0 or start + count * dtype.itemsize > len(data):
                    raise ValueError("longer than the entry")
                arrays.append(np.frombuffer(data, dtype, count, start).reshape(shape))
                start += count * dtype.itemsize
            if start != len(data) or not isinstance(header["fields"], dict):
                raise ValueError("header and length disagree")
            return Block(header["fields"], tuple(arrays))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError, struct.error) as error:
            raise self._refused(f"is damaged: {name:.20} cannot be read ({error!s:.200})") from None

    def _refused(self, why: str) -> StoreError:
        return StoreError(f"{self._path} {why}: export the knowledge base again")


@contextlib.contextmanager
def _written(path: Path) -> Iterator[IO[bytes]]:
    """A file to fill, which takes the path's place on a clean exit and is removed on an error."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _packed(documents: Iterable[Sequence[Row]]) -> Iterator[tuple[list[Row], int]]:
    """Rows of whole documents, about a file's worth at a time, and how many documents they are."""
    rows: list[Row] = []
    count = 0
    for parts in documents:
        rows += parts
        count += 1
        if len(rows) >= _ROWS_PER_FILE:
            yield rows, count
            rows, count = [], 0
    if rows:
        yield rows, count


def _schema(dim: int) -> Any:
    try:
        import pyarrow as pa
    except ImportError:
        raise MissingExtraError("pyarrow", "rag") from None
    types = {
        "number": pa.int32(),
        "count": pa.int32(),
        "tags": pa.list_(pa.string()),
        "token_ids": pa.list_(pa.int32()),
    }
    names = [one.name for one in dataclasses.fields(Row) if one.name != "vector"]
    fields = [pa.field(name, types.get(name, pa.string()), nullable=False) for name in names]
    return pa.schema([*fields, pa.field("vector", pa.list_(pa.float32(), dim), nullable=False)])


def _parquet(rows: Sequence[Row], dim: int) -> bytes:
    schema = _schema(dim)
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [pa.array([getattr(row, name) for row in rows], schema.field(name).type) for name in schema.names[:-1]]
    vectors = np.stack([row.vector for row in rows if row.vector is not None]).astype(np.float32)
    columns.append(pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dim))
    out = io.BytesIO()
    table = pa.Table.from_arrays(columns, schema=schema)
    # neither compressed nor by dictionary: what comes out of a file is then no larger than the file
    pq.write_table(table, out, compression="NONE", use_dictionary=False, write_statistics=False)
    return out.getvalue()


def _from_parquet(data: bytes, dim: int) -> list[Row]:
    schema = _schema(dim)
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[Row] = []
    num_bytes = 0
    file = pq.ParquetFile(io.BytesIO(data), arrow_extensions_enabled=False)
    if file.schema_arrow.remove_metadata() != schema:
        raise ValueError("other columns than an export has")
    for batch in file.iter_batches(batch_size=64, use_threads=False):
        batch.validate(full=True)
        num_bytes += batch.nbytes
        if num_bytes > 2 * len(data):  # offsets of short texts take more than their lengths in the file
            raise ValueError("it decodes to more than its size")
        if any(column.null_count for column in batch.columns):
            raise ValueError("values are missing")
        flat = batch.column("vector").flatten().to_numpy(zero_copy_only=False)
        vectors = np.array(flat, dtype=np.float32).reshape(batch.num_rows, dim)
        plain = batch.drop_columns(["vector"]).to_pylist()
        for fields, vector in zip(plain, vectors, strict=True):
            for name in ("tags", "token_ids"):
                fields[name] = tuple(fields[name])
            rows.append(Row(**fields, vector=vector))
    assert isinstance(schema, pa.Schema)
    return rows


def _write_block(entry: IO[bytes], block: Block) -> None:
    arrays = [np.ascontiguousarray(array) for array in block.arrays]
    described = [{"dtype": array.dtype.name, "shape": list(array.shape)} for array in arrays]
    header = json.dumps({"fields": dict(block.fields), "arrays": described}).encode()
    entry.write(_LENGTH.pack(len(header)) + header)
    for array in arrays:
        entry.write(array.reshape(-1).view(np.uint8).data)
