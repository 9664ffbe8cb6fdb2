"""Document key-values on disk: one file per block, named by what it holds, checked on every read.

The name is a 256-bit digest over everything that the numbers depend on: format version, model, exact token ids, codec
and a salt. A block of another model, tokenizer, prompt format or attention mode therefore has another name and cannot
be reached; a torn, missing, foreign or corrupt file is ``None`` and a counted warning, and the caller reads the
document again. Ids never become paths.

    file     magic (8) | format version, header length (2 x uint32) | header (JSON, padded) | tensors | xxh3-128 (16)
    tensors  keys of every layer, then values of every layer, raw, from a multiple of 64 bytes on

Files are whole or absent (written beside, flushed, renamed). There is one codec so far, ``exact``: the tensors as they
are. This module knows nothing about models, retrieval or what a block is worth keeping for.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import struct
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gritkit.errors import MissingExtraError, StoreError
from gritkit.files import write_atomic
from gritkit.kv.dockv import DocKV

FORMAT_VERSION = 1
CODEC = "exact"

_MAGIC = b"GRITKV\r\n"  # the line end shows a transfer in text mode
_FIXED = struct.Struct("<8sII")
_ALIGNMENT = 64
_DIGEST_SIZE = 16
_SUFFIX = ".kv"
_WRITERS = 8
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64)
}

_log = logging.getLogger("gritkit")


class _UnusableError(Exception):
    """Why a file is not the block that was asked for."""


class BlockStore:
    """Blocks of one model in a folder. ``salt`` separates tenants: with another one the same document is not found.

    Raises:
        MissingExtraError: without the package xxhash.
    """

    def __init__(self, folder: Path, fingerprint: str, *, salt: str = "") -> None:
        _checksum(b"")
        self.folder = folder
        self.counts: Counter[str] = Counter()
        """``hit``, ``missing`` and ``damaged`` reads so far."""
        self._fingerprint = fingerprint
        self._salt = salt

    def key_of(self, ids: Sequence[int], num_bos: int) -> str:
        """The name under which the key-values of these tokens are kept: 64 hexadecimal digits."""
        return _key(self._fields(ids, num_bos))

    def put(self, document: DocKV) -> str:
        """Keep a document; returns its key. Raises StoreError when the disk refuses."""
        fields = self._fields(document.ids, document.num_bos)
        key = _key(fields)
        try:
            write_atomic(self._path(key), _encode(document, fields))
        except OSError as error:
            raise StoreError(f"cannot write a block to {self.folder}: {error.strerror or error}") from error
        return key

    def put_many(self, documents: Sequence[DocKV]) -> list[str]:
        """Keep documents, several at a time: most of a write is waiting for the disk to have it."""
        with ThreadPoolExecutor(_WRITERS) as pool:
            return list(pool.map(self.put, documents))

    def get(self, key: str) -> DocKV | None:
        """The document of that key, on the CPU; None, with a warning, when it is not there or not what it should be."""
        path = self._path(key)
        try:
            data = np.fromfile(path, dtype=np.uint8)
            fields, document = _decode(data)
            if _key(fields) != key or fields != self._fields(document.ids, document.num_bos):
                raise _UnusableError("it holds another document, or belongs to another model")
        except FileNotFoundError:
            self._lost("missing", key, "there is no such file")
            return None
        except (_UnusableError, OSError) as error:
            self._lost("damaged", key, str(error))
            return None
        self.counts["hit"] += 1
        return document

    def delete(self, key: str) -> bool:
        """Remove a block; False when there was none."""
        try:
            self._path(key).unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StoreError(f"cannot delete a block of {self.folder}: {error.strerror or error}") from error
        return True

    def keys(self) -> Iterator[str]:
        """The keys of all blocks, of whichever model and condition, in no order."""
        for path in self.folder.glob(f"??/??/*{_SUFFIX}"):
            if not path.name.startswith("."):
                yield path.name.removesuffix(_SUFFIX)

    @property
    def num_bytes(self) -> int:
        """Bytes of all blocks on disk."""
        return sum(self._path(key).stat().st_size for key in self.keys())

    def _fields(self, ids: Sequence[int], num_bos: int) -> dict[str, Any]:
        """All that a block's numbers depend on; its digest is the key."""
        return {
            "format_version": FORMAT_VERSION,
            "model": self._fingerprint,
            "codec": CODEC,
            "salt": self._salt,
            "num_bos": num_bos,
            "ids": list(ids),
        }

    def _path(self, key: str) -> Path:
        if len(key) != 64 or not set(key) <= set("0123456789abcdef"):
            raise ValueError(f"not the key of a block: {key!r}")
        return self.folder / key[:2] / key[2:4] / f"{key}{_SUFFIX}"

    def _lost(self, kind: str, key: str, reason: str) -> None:
        self.counts[kind] += 1
        _log.warning("block %s of cached key-values is not used: %s (%s blocks so far: %d)",
                     key[:12], reason, kind, self.counts[kind])  # fmt: skip


def _key(fields: dict[str, Any]) -> str:
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()


def _encode(document: DocKV, fields: dict[str, Any]) -> bytes:
    tensors = [tensor.detach().cpu().contiguous() for tensor in (*document.keys, *document.values)]
    described = [{"dtype": str(x.dtype).removeprefix("torch."), "shape": list(x.shape)} for x in tensors]
    for one in described:
        if one["dtype"] not in _DTYPES:
            raise StoreError(f"key-values of type {one['dtype']} cannot be stored: known are {', '.join(_DTYPES)}")
    header = json.dumps({"key": fields, "byteorder": sys.byteorder, "tensors": described}).encode()
    header += b" " * (-(_FIXED.size + len(header)) % _ALIGNMENT)
    parts = [_FIXED.pack(_MAGIC, FORMAT_VERSION, len(header)), header]
    parts += [tensor.view(-1).view(torch.uint8).numpy().tobytes() for tensor in tensors]
    return b"".join([*parts, _checksum(*parts)])


def _decode(data: NDArray[np.uint8]) -> tuple[dict[str, Any], DocKV]:
    """(key fields, document), views of ``data``. Raises _UnusableError."""
    end = len(data) - _DIGEST_SIZE
    if end < _FIXED.size:
        raise _UnusableError(f"it is torn: {len(data)} bytes")
    magic, version, header_size = _FIXED.unpack(data[: _FIXED.size].tobytes())
    if magic != _MAGIC:
        raise _UnusableError("it is not a block of key-values")
    if version != FORMAT_VERSION:
        raise _UnusableError(f"it has format version {version} and this gritkit reads {FORMAT_VERSION}")
    if _checksum(data[:end].data) != data[end:].tobytes():
        raise _UnusableError("its checksum is wrong (torn or corrupt)")
    start = _FIXED.size + header_size
    try:
        header = json.loads(data[_FIXED.size : start].tobytes())
        fields = header["key"]
        if header["byteorder"] != sys.byteorder:
            raise _UnusableError(f"it was written on a {header['byteorder']}-endian machine")
        tensors = []
        for described in header["tensors"]:
            dtype, shape = _DTYPES[described["dtype"]], tuple(described["shape"])
            size = math.prod(shape) * dtype.itemsize
            if start + size > end:
                raise _UnusableError("its header and its length disagree")
            tensors.append(torch.from_numpy(data[start : start + size]).view(dtype).view(shape))
            start += size
        half = len(tensors) // 2
        document = DocKV(tuple(fields["ids"]), fields["num_bos"], tuple(tensors[:half]), tuple(tensors[half:]))
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise _UnusableError(f"its header cannot be understood: {error}") from None
    if start != end:
        raise _UnusableError("its header and its length disagree")
    return fields, document


def _checksum(*parts: bytes | memoryview) -> bytes:
    """xxh3-128 of the parts joined: faster than the disk, unlike sha256. Not a signature: it finds accidents."""
    try:
        from xxhash import xxh3_128
    except ImportError:
        raise MissingExtraError("xxhash", "rag") from None
    state = xxh3_128()
    for part in parts:
        state.update(part)
    return state.digest()
