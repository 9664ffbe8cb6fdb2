"""The file of one block: its format, and reading it checked.

    prefix   magic | xxh3-64 of the head from here on | format version | sizes | cost
    fields   the canonical form of the block's fields, whose digest is the block's key
    about    JSON: byte order, dtypes and shapes of the arrays
    table    xxh3-64 of every chunk of the payload
    payload  the arrays, each from a multiple of 64 bytes on

Every byte of a file is under a checksum, and the checksum is part of the read: a few threads read chunk after chunk
into the final buffer and digest each while it is in their cache. Nothing is believed before its checksum was right,
and nothing is used before it was compared with the length of the file, so a hostile file is at worst useless.

Files are read with ``preadv`` and not mapped. A map that is checked was no faster (every byte is touched either way),
and a file that somebody cuts off kills each process that has it mapped, while a read of it comes back short.

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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gritkit.errors import MissingExtraError, StoreError

FORMAT_VERSION = 2
CHUNK_BYTES = 1 << 20
THREADS = 4
THREAD_BYTES = 4 << 20  # with less for each, waking threads takes longer than they save

_MAGIC = b"GRITKV\r\n"  # the line end shows a transfer in text mode
_PREFIX = struct.Struct("<8sQ5IQd")
_SEALED = 16
_ALIGNMENT = 64
_FIRST_READ = 1 << 20  # with the head comes what fits: a small block is one read
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

Digest = Callable[[Any], int]


class UnusableError(Exception):
    """Why a file is not the block that was asked for."""


class MissingError(UnusableError):
    """There is no such file."""


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


def _key(form: bytes | memoryview) -> str:
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
    sums = list(_chunk_sums(parts))
    head = b"".join([text, ints, about, struct.pack(f"<{len(sums)}Q", *sums)])
    head += bytes(-(_PREFIX.size + len(head)) % _ALIGNMENT)
    sizes = (len(text), len(ints), len(about), CHUNK_BYTES, _size(parts))
    seal = checksum()(_PREFIX.pack(_MAGIC, 0, FORMAT_VERSION, *sizes, cost)[_SEALED:] + head)
    return _key(text + ints), [_PREFIX.pack(_MAGIC, seal, FORMAT_VERSION, *sizes, cost), head, *parts]


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


# Reading


@dataclass(frozen=True)
class _Head:
    fields: dict[str, Any]
    arrays: tuple[NDArray[Any], ...]
    """Views of the payload's bytes, whether they were read already or not."""
    sums: tuple[int, ...]
    chunk: int
    start: int
    """Where the payload begins in the file."""


class Reading:
    """A file of which the beginning was read and the head was right; ``work`` has the rest read.

    Raises:
        FileNotFoundError: when there is none.
        UnusableError, OSError: when it is not the block of that key.
    """

    def __init__(self, path: str, key: str, digest: Digest) -> None:
        self.failure: str | None = None
        self._digest = digest
        self._fd = os.open(path, _OPEN)
        try:
            status = os.fstat(self._fd)
            if not stat.S_ISREG(status.st_mode):
                raise UnusableError("it is not a file")
            self.size, self.modified = status.st_size, status.st_mtime
            self._view = _aligned(self.size)
            self._there = min(self.size, _FIRST_READ)
            self._fill(0, self._there)
            self._head = self._read_head(key)
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        os.close(self._fd)

    def block(self) -> Block:
        """The block, as views of the file's bytes."""
        assert self.failure is None
        return Block(self._head.fields, self._head.arrays)

    @property
    def num_chunks(self) -> int:
        return len(self._head.sums)

    def read_chunk(self, number: int) -> None:
        """Read and check a chunk: all of them before ``block``, in whichever threads."""
        if self.failure is not None:
            return
        start = self._head.start + number * self._head.chunk
        end = min(start + self._head.chunk, self.size)
        try:
            self._fill(max(start, self._there), end)
        except (OSError, UnusableError) as error:
            self.failure = str(error)
        else:
            if self._digest(self._view[start:end]) != self._head.sums[number]:
                self.failure = "the checksum of its numbers is wrong"

    def _fill(self, start: int, end: int) -> None:
        while start < end:
            count = os.preadv(self._fd, [self._view[start:end]], start)
            if not count:
                raise UnusableError("it became shorter while it was read")
            start += count

    def _read_head(self, key: str) -> _Head:
        if self.size < _PREFIX.size:
            raise UnusableError(f"it is torn: {self.size} bytes")
        magic, seal, version, text_size, ints_size, about_size, chunk, payload, _cost = _PREFIX.unpack_from(self._view)
        if magic != _MAGIC:
            raise UnusableError("it is not a block of key-values")
        if version != FORMAT_VERSION:
            raise UnusableError(f"it has format version {version} and this gritkit reads {FORMAT_VERSION}")
        if max(text_size, about_size) > _LARGEST_JSON or ints_size > _LARGEST_INTS or chunk not in _CHUNK_SIZES:
            raise UnusableError("its head has impossible sizes")
        ints_at = _PREFIX.size + text_size
        about_at = ints_at + ints_size
        table_at = about_at + about_size
        num_chunks = -(-payload // chunk)
        start = table_at + 8 * num_chunks
        start += -start % _ALIGNMENT
        if start + payload != self.size:
            raise UnusableError(f"its {self.size} bytes are not the {start + payload} that its head states (torn)")
        self._fill(self._there, start)
        self._there = max(self._there, start)
        data = self._view[:start]
        if self._digest(data[_SEALED:]) != seal:
            raise UnusableError("the checksum of its head is wrong")
        if _key(data[_PREFIX.size : about_at]) != key:
            raise UnusableError("it is another block")
        try:
            fields = _fields(data[_PREFIX.size : ints_at], data[ints_at:about_at])
            arrays = _arrays(_json(data[about_at:table_at]), self._view[start:])
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise UnusableError(f"its head cannot be understood: {error}") from None
        return _Head(fields, arrays, struct.unpack_from(f"<{num_chunks}Q", data, table_at), chunk, start)


def read(paths: Mapping[str, str], digest: Digest) -> dict[str, Reading | UnusableError]:
    """Read the files of those keys, checked, side by side. What is not a usable block has the reason in its place."""
    outcomes: dict[str, Reading | UnusableError] = {}

    def begin(key: str) -> None:
        try:
            outcomes[key] = Reading(paths[key], key, digest)
        except FileNotFoundError:
            outcomes[key] = MissingError("there is no such file")
        except (UnusableError, OSError, MemoryError) as error:
            outcomes[key] = UnusableError(str(error))  # a new one: a traceback would hold on to the buffer

    try:
        _share(begin, [(key,) for key in paths], helpers=len(paths) - 1)
        begun = [one for one in outcomes.values() if isinstance(one, Reading)]
        chunks = [(one, number) for one in begun for number in range(one.num_chunks)]
        _share(Reading.read_chunk, chunks, helpers=sum(one.size for one in begun) // THREAD_BYTES - 1)
    finally:
        for one in outcomes.values():
            if isinstance(one, Reading):
                one.close()
    return {key: _judged(one) for key, one in outcomes.items()}


def _judged(outcome: Reading | UnusableError) -> Reading | UnusableError:
    failed = isinstance(outcome, Reading) and outcome.failure
    return UnusableError(failed) if failed else outcome


def _share(do: Callable[..., None], jobs: Sequence[tuple[Any, ...]], *, helpers: int) -> None:
    """Call ``do`` with each of the jobs, in this thread and at most that many others."""
    left = iter(jobs)  # ``next`` is one step, which no other thread can interrupt

    def work() -> None:
        for job in left:
            do(*job)

    futures = [pool().submit(work) for _ in range(min(helpers, THREADS - 1))]
    try:
        work()
    finally:
        for future in futures:
            if not future.cancel():  # one that has not begun would find nothing left
                future.result()


@functools.cache
def pool() -> ThreadPoolExecutor:
    """The threads that read; one set for the process."""
    return ThreadPoolExecutor(THREADS, thread_name_prefix="gritkit-blocks")


os.register_at_fork(after_in_child=pool.cache_clear)  # a forked child has none of the threads


def cost_of(path: str) -> float:
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
    magic, _, version, *_, cost = _PREFIX.unpack(prefix)
    return float(cost) if magic == _MAGIC and version == FORMAT_VERSION and 0 <= cost < math.inf else 0.0


def _aligned(size: int) -> memoryview:
    raw = np.empty(size + _ALIGNMENT, dtype=np.uint8)
    start = -raw.__array_interface__["data"][0] % _ALIGNMENT
    return raw.data[start : start + size]


def _json(text: memoryview) -> Any:
    return json.loads(str(text, "ascii"))


def _fields(text: memoryview, ints: memoryview) -> dict[str, Any]:
    shape = _json(text)
    fields: dict[str, Any] = dict(shape["rest"])
    start = 0
    for name in sorted(shape["ints"]):
        end = start + 4 * shape["ints"][name]
        fields[name] = np.frombuffer(ints[start:end], dtype="<i4").tolist()
        start = end
    if start != len(ints):
        raise ValueError("the lists of numbers have other lengths")
    return fields


def _arrays(about: Any, payload: memoryview) -> tuple[NDArray[Any], ...]:
    if about["byteorder"] != sys.byteorder:
        raise UnusableError(f"it was written on a {about['byteorder']}-endian machine")
    arrays: list[NDArray[Any]] = []
    place = 0
    for name, shape in about["arrays"]:
        dtype = _DTYPES[name]
        if not set(map(type, shape)) <= {int} or (shape and min(shape) < 0):
            raise UnusableError(f"it states an impossible shape: {shape}")
        arrays.append(np.ndarray(tuple(shape), dtype, payload, place))  # refuses what is outside of the payload
        place += math.prod(shape) * dtype.itemsize
        place += -place % _ALIGNMENT
    if place != len(payload):
        raise UnusableError("its shapes and its length disagree")
    return tuple(arrays)
