"""The file of one block: its format, and reading it checked.

    prefix   magic | format version | sizes | cost | xxh3-64 of the whole head but for these 8 bytes
    fields   the canonical form of the block's fields, whose digest is the block's key
    about    JSON: byte order, dtypes and shapes of the arrays
    table    xxh3-64 of every chunk of the payload
    payload  the arrays, each from a multiple of 64 bytes on

Every byte of a file is under a checksum, and the checksum is part of the read: a few threads read chunk after chunk
into the final buffer and digest each while it is in their cache. Nothing is believed before its checksum was right,
and nothing is used before it was compared with the length of the file, so a hostile file is at worst useless.

Files are read with ``preadv`` and not mapped, although a map would be as fast: a file that somebody truncates kills
every process that has it mapped, while a read of it comes back short.

The canonical form of fields: JSON with sorted keys and without spaces of ``{"format": version, "ints": {name: length},
"rest": fields}``, where every non-empty list of 32-bit integers at the top level is out of ``rest`` and in ``ints``;
then the numbers of those lists in the order of their names, as little-endian int32. (Token ids in JSON take longer to
parse than their key-values take to read.) The key is its blake2b-256 in hexadecimal.

This module knows nothing about folders, models or what a block is worth keeping for.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import stat
import struct
import sys
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gritkit.errors import MissingExtraError, StoreError

FORMAT_VERSION = 2
CHUNK_BYTES = 1 << 20

_MAGIC = b"GRITKV\r\n"  # the line end shows a transfer in text mode
_PREFIX = struct.Struct("<8s5IQdQ")
_ALIGNMENT = 64
_FIRST_READ = 1 << 16
_LARGEST_JSON = 1 << 20
_LARGEST_INTS = 1 << 26
_CHUNK_SIZES = range(1 << 12, (1 << 26) + 1)
_DTYPES = {
    name: np.dtype(name)
    for name in (
        *("bool", "float16", "float32", "float64"),
        *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    )
}
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW  # a pipe in the place of a block must not block
_THREADS = 4
_ALONE_BYTES = 1 << 20  # up to here one thread is done before a second one would have started

Digest = Callable[[Any], int]


class UnusableError(Exception):
    """Why a file is not the block that was asked for."""


@dataclass(frozen=True, eq=False)
class Block:
    """Numbers and everything that they depend on."""

    fields: Mapping[str, Any]
    """JSON. Sequences come back as lists."""
    arrays: tuple[NDArray[Any], ...]

    @cached_property
    def key(self) -> str:
        return key_of(self.fields)

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays."""
        return sum(one.nbytes for one in self.arrays)


def key_of(fields: Mapping[str, Any]) -> str:
    """The name of the block with these fields: 64 hexadecimal digits, the same on every machine."""
    return _key(b"".join(canonical(fields)))


def canonical(fields: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """The canonical form (see the top of the file): (JSON, numbers)."""
    ints = {name: packed for name in sorted(fields) if (packed := _packed(fields[name])) is not None}
    shape = {
        "format": FORMAT_VERSION,
        "ints": {name: len(packed) for name, packed in ints.items()},
        "rest": {name: value for name, value in fields.items() if name not in ints},
    }
    text = json.dumps(shape, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode(), b"".join(packed.tobytes() for packed in ints.values())


def _packed(value: Any) -> array[int] | None:
    if not isinstance(value, (list, tuple)) or set(map(type, value)) != {int}:  # a bool is an int to ``array``
        return None
    try:
        packed = array("i", value)
    except OverflowError:
        return None
    if sys.byteorder == "big":
        packed.byteswap()
    return packed


def _key(form: bytes) -> str:
    return hashlib.blake2b(form, digest_size=32).hexdigest()


def checksum() -> Digest:
    """xxh3-64: several times faster than memory is copied, unlike sha256. Not a signature: it finds accidents.

    Raises:
        MissingExtraError: without the package xxhash.
    """
    try:
        from xxhash import xxh3_64_intdigest
    except ImportError:
        raise MissingExtraError("xxhash", "rag") from None
    return xxh3_64_intdigest


# Writing


def encode(block: Block, *, cost: float) -> tuple[str, list[bytes | memoryview]]:
    """(key, the parts of the file in order). The parts are views of the block's arrays: nothing is copied.

    Raises:
        StoreError: for a dtype that files do not hold.
    """
    text, ints = canonical(block.fields)
    arrays = [np.asarray(one, order="C") for one in block.arrays]
    for one in arrays:
        if one.dtype.name not in _DTYPES or not one.dtype.isnative:
            raise StoreError(f"arrays of type {one.dtype} cannot be stored: known are {', '.join(_DTYPES)}")
    about = json.dumps({"byteorder": sys.byteorder, "arrays": [[x.dtype.name, list(x.shape)] for x in arrays]}).encode()
    if max(len(text), len(about)) > _LARGEST_JSON or len(ints) > _LARGEST_INTS:
        raise StoreError(f"a block with {len(text) + len(ints) + len(about)} bytes of fields and shapes is too large")
    parts: list[bytes | memoryview] = []
    for one in arrays:
        parts.append(one.reshape(-1).view(np.uint8).data)
        parts.append(bytes(-one.nbytes % _ALIGNMENT))
    table = struct.pack(f"<{(n := _num_chunks(_size(parts), CHUNK_BYTES))}Q", *_chunk_sums(parts))
    head = b"".join([text, ints, about, table])
    head += bytes(-(_PREFIX.size + len(head)) % _ALIGNMENT)
    sizes = (len(text), len(ints), len(about), CHUNK_BYTES)
    unsealed = _PREFIX.pack(_MAGIC, FORMAT_VERSION, *sizes, _size(parts), cost, 0)
    assert n * 8 == len(table)
    prefix = unsealed[:-8] + struct.pack("<Q", checksum()(unsealed[:-8] + head))
    return _key(text + ints), [prefix, head, *parts]


def _size(parts: Sequence[bytes | memoryview]) -> int:
    return sum(len(part) for part in parts)


def _chunk_sums(parts: Sequence[bytes | memoryview]) -> Iterator[int]:
    """The digest of every chunk of the joined parts."""
    from xxhash import xxh3_64

    state, room = xxh3_64(), CHUNK_BYTES
    for part in parts:
        start = 0
        while start < len(part):
            piece = part[start : start + room]
            state.update(piece)
            start += len(piece)
            room -= len(piece)
            if not room:
                yield state.intdigest()
                state.reset()
                room = CHUNK_BYTES
    if room < CHUNK_BYTES:
        yield state.intdigest()


def _num_chunks(size: int, chunk: int) -> int:
    return -(-size // chunk)


# Reading


@dataclass(frozen=True)
class _Head:
    fields: dict[str, Any]
    arrays: list[tuple[np.dtype[Any], tuple[int, ...]]]
    sums: tuple[int, ...]
    chunk: int
    start: int
    """Where the payload begins in the file."""
    payload: int


@dataclass
class Reading:
    """An open file whose head was right; its payload is read by ``read``."""

    fd: int
    modified: float
    """When the file was written or last used, in seconds since the epoch."""
    size: int
    _head: _Head
    _buffer: NDArray[np.uint8]
    failure: str | None = field(default=None)

    def close(self) -> None:
        os.close(self.fd)

    def block(self) -> Block:
        """The block as views of the buffer that was read; raises UnusableError with why not."""
        if self.failure is not None:
            raise UnusableError(self.failure)
        arrays, start = [], 0
        for dtype, shape in self._head.arrays:
            end = start + math.prod(shape) * dtype.itemsize
            arrays.append(self._buffer[start:end].view(dtype).reshape(shape))
            start = end + -end % _ALIGNMENT
        return Block(self._head.fields, tuple(arrays))

    def jobs(self) -> Iterator[tuple[Reading, int]]:
        return ((self, number) for number in range(len(self._head.sums)))

    def read_chunk(self, number: int, digest: Digest) -> None:
        """Read a chunk to its place and check it."""
        if self.failure is not None:
            return
        start = number * self._head.chunk
        view = self._buffer[start : start + self._head.chunk].data
        try:
            _read_all(self.fd, view, self._head.start + start)
        except (OSError, UnusableError) as error:
            self.failure = str(error)
            return
        if digest(view) != self._head.sums[number]:
            self.failure = "the checksum of its numbers is wrong"

    @property
    def num_bytes(self) -> int:
        return self._head.payload


def open_block(path: Path, key: str, digest: Digest) -> Reading:
    """Open a block's file and check its head.

    Raises:
        FileNotFoundError: when there is none.
        UnusableError, OSError: when it is not the block of that key.
    """
    fd = os.open(path, _OPEN)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise UnusableError("it is not a file")
        head = _read_head(fd, status.st_size, key, digest)
        try:
            buffer = _aligned(head.payload)
        except MemoryError:
            raise UnusableError(f"its {head.payload} bytes do not fit into memory") from None
        return Reading(fd, status.st_mtime, status.st_size, head, buffer)
    except BaseException:
        os.close(fd)
        raise


def read(readings: Sequence[Reading], digest: Digest) -> None:
    """Read the payloads of open blocks, several chunks at a time. What fails is noted in the reading."""
    jobs = (job for reading in readings for job in reading.jobs())
    total = sum(reading.num_bytes for reading in readings)
    lock_free_next = functools.partial(next, iter(list(jobs)), None)

    def work() -> None:
        while (job := lock_free_next()) is not None:
            job[0].read_chunk(job[1], digest)

    helpers = 0 if total <= _ALONE_BYTES else _THREADS - 1
    futures = [pool().submit(work) for _ in range(helpers)]
    work()
    wait(futures)
    for future in futures:
        future.result()


@functools.cache
def pool() -> ThreadPoolExecutor:
    """The threads that read; one set for the process."""
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="gritkit-blocks")


os.register_at_fork(after_in_child=pool.cache_clear)  # a forked child has none of the threads


def cost_of(path: Path) -> float:
    """The cost that a block was stored with; 0 for what is no block."""
    try:
        fd = os.open(path, _OPEN)
        try:
            prefix = os.pread(fd, _PREFIX.size, 0)
        finally:
            os.close(fd)
    except OSError:
        return 0.0
    if len(prefix) < _PREFIX.size:
        return 0.0
    magic, version, *_, cost, _sum = _PREFIX.unpack(prefix)
    return float(cost) if magic == _MAGIC and version == FORMAT_VERSION and 0 <= cost < math.inf else 0.0


def _aligned(size: int) -> NDArray[np.uint8]:
    raw = np.empty(size + _ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size]


def _read_all(fd: int, view: memoryview, offset: int) -> None:
    while view:
        count = os.preadv(fd, [view], offset)
        if not count:
            raise UnusableError("it became shorter while it was read")
        view, offset = view[count:], offset + count


def _read_head(fd: int, file_size: int, key: str, digest: Digest) -> _Head:
    data = os.pread(fd, _FIRST_READ, 0)
    if len(data) < _PREFIX.size:
        raise UnusableError(f"it is torn: {file_size} bytes")
    magic, version, text_size, ints_size, about_size, chunk, payload, _cost, seal = _PREFIX.unpack_from(data)
    if magic != _MAGIC:
        raise UnusableError("it is not a block of key-values")
    if version != FORMAT_VERSION:
        raise UnusableError(f"it has format version {version} and this gritkit reads {FORMAT_VERSION}")
    if max(text_size, about_size) > _LARGEST_JSON or ints_size > _LARGEST_INTS or chunk not in _CHUNK_SIZES:
        raise UnusableError("its head has impossible sizes")
    table_at = _PREFIX.size + text_size + ints_size + about_size
    num_chunks = _num_chunks(payload, chunk)
    start = table_at + 8 * num_chunks
    start += -start % _ALIGNMENT
    if start + payload != file_size:
        raise UnusableError(f"its {file_size} bytes are not the {start + payload} that its head states (torn)")
    while len(data) < start:
        more = os.pread(fd, start - len(data), len(data))
        if not more:
            raise UnusableError("it became shorter while it was read")
        data += more
    if digest(data[: _PREFIX.size - 8] + data[_PREFIX.size : start]) != seal:
        raise UnusableError("the checksum of its head is wrong")
    form, about = data[_PREFIX.size : table_at - about_size], data[table_at - about_size : table_at]
    if _key(form) != key:
        raise UnusableError("it is another block")
    try:
        fields = _fields(form[:text_size], form[text_size:])
        arrays = _arrays(json.loads(about), payload)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UnusableError(f"its head cannot be understood: {error}") from None
    return _Head(fields, arrays, struct.unpack_from(f"<{num_chunks}Q", data, table_at), chunk, start, payload)


def _fields(text: bytes, ints: bytes) -> dict[str, Any]:
    shape = json.loads(text)
    fields: dict[str, Any] = dict(shape["rest"])
    start = 0
    for name in sorted(shape["ints"]):
        end = start + 4 * shape["ints"][name]
        fields[name] = np.frombuffer(ints[start:end], dtype="<i4").tolist()
        start = end
    if start != len(ints):
        raise ValueError("the lists of numbers have other lengths")
    return fields


def _arrays(about: Any, payload: int) -> list[tuple[np.dtype[Any], tuple[int, ...]]]:
    if about["byteorder"] != sys.byteorder:
        raise UnusableError(f"it was written on a {about['byteorder']}-endian machine")
    arrays, end = [], 0
    for name, shape in about["arrays"]:
        dtype = _DTYPES[name]
        if any(type(length) is not int or not 0 <= length <= payload for length in shape) or len(shape) > 32:
            raise UnusableError(f"it states an impossible shape: {shape}")
        end += math.prod(shape) * dtype.itemsize
        end += -end % _ALIGNMENT
        if end > payload:
            break
        arrays.append((dtype, tuple(shape)))
    if end != payload:
        raise UnusableError("its shapes and its length disagree")
    return arrays
