"""Blocks of numbers on disk: one file per block, named by what it depends on, checked on every read.

The name is a 256-bit digest over everything that the numbers depend on, as the caller states it in the block's fields:
digest of the model, codec, salt, exact token ids. A block of another model, tokenizer, prompt format or attention mode
therefore has another name and cannot be reached; a torn, missing, foreign or corrupt file is ``None`` and a counted
warning, and the caller makes the numbers again. Ids never become paths.

Files are whole or absent (written beside, flushed, renamed, folder flushed) and never change. Several processes may
share a folder; a file that another one deleted is missing, no more. ``block_file`` has the format. This module knows
nothing about models, documents or how numbers are coded.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from gritkit.errors import InputError, StoreError
from gritkit.files import sync_folder
from gritkit.kv import block_file
from gritkit.kv.block_file import Block, MissingError, Reading, UnusableError, key_of
from gritkit.kv.cost_cache import Ranking

__all__ = ["Block", "BlockStore", "key_of"]

_SUFFIX = ".kv"
_TEMPORARY = ".tmp"
_is_key = re.compile("[0-9a-f]{64}").fullmatch
_WRITERS = 8
_OPEN_AT_ONCE = 64
_TOUCH_SECONDS = 60.0
_LEFT_OVER_SECONDS = 3600.0
_RESCAN_SHARE = 16  # other processes' blocks are counted again after each such part of the budget was written

_log = logging.getLogger("gritkit")


class BlockStore:
    """Blocks in a folder, which is made by the first put. Safe to use from several threads.

    With ``max_bytes``, a put deletes the blocks that are least worth keeping (``cost_cache``: by last use and by cost
    for their size) until the rest fits. Last use is kept as the time of the file, to the minute.

    Raises:
        MissingExtraError: without the package xxhash.
    """

    def __init__(self, folder: Path, *, max_bytes: int | None = None) -> None:
        if max_bytes is not None and max_bytes < 0:
            raise InputError(f"the bytes that blocks may take up must not be negative, got {max_bytes}")
        self.folder = folder
        self._root = os.fspath(folder)
        self.max_bytes = max_bytes
        self.counts: Counter[str] = Counter()
        """``hit``, ``missing`` and ``damaged`` reads and ``evicted`` blocks so far."""
        self._digest = block_file.checksum()
        self._lock = threading.Lock()
        self._ranking: Ranking | None = None
        self._unscanned = 0

    def put(self, block: Block, *, cost: float | None = None) -> str:
        """Keep a block; it is on the disk when this returns its key. A whole one that is there already stays.

        ``cost`` is what making it again costs, in any unit; by default the number of integers in its fields' lists,
        which are tokens. Raises StoreError when the disk refuses; then nothing of the block is there.
        """
        return self.put_many([block], costs=None if cost is None else [cost])[0]

    def put_many(self, blocks: Sequence[Block], *, costs: Sequence[float] | None = None) -> list[str]:
        """Keep blocks, several at a time: most of a write is waiting for the disk to have it."""
        if costs is None:
            costs = [_default_cost(block) for block in blocks]
        try:
            if len(blocks) == 1:
                written = [self._write(blocks[0], costs[0])]
            else:
                with ThreadPoolExecutor(_WRITERS) as pool:
                    written = list(pool.map(self._write, blocks, costs))
            for folder in {os.path.dirname(self._path(key)) for key, _ in written}:
                sync_folder(Path(folder))
            if written:
                sync_folder(self.folder)
        except OSError as error:
            raise StoreError(f"cannot write a block to {self.folder}: {error.strerror or error}") from error
        if self.max_bytes is not None:
            self._make_room({key: (size, cost) for (key, size), cost in zip(written, costs, strict=True)})
        return [key for key, _ in written]

    def get(self, key: str) -> Block | None:
        """The block of that key; None, with a warning, when it is not there or not what it should be."""
        return self.get_many([key])[0]

    def get_many(self, keys: Sequence[str]) -> list[Block | None]:
        """The blocks of those keys, read side by side. Arrays are views of one fresh buffer a block."""
        found: dict[str, Block | None] = dict.fromkeys(keys)
        distinct = list(found)
        for start in range(0, len(distinct), _OPEN_AT_ONCE):
            paths = {key: self._path(key) for key in distinct[start : start + _OPEN_AT_ONCE]}
            for key, outcome in block_file.read(paths, self._digest).items():
                found[key] = self._judge(key, outcome)
        return [found[key] for key in keys]

    def read_ahead(self, keys: Collection[str]) -> None:
        """Have the disk begin to read blocks that will be asked for; a hint, which never fails and does not wait."""
        if hasattr(os, "posix_fadvise"):
            for path in [self._path(key) for key in keys]:
                with contextlib.suppress(RuntimeError):  # the interpreter is shutting down
                    block_file.pool().submit(_will_need, path)

    def contains(self, key: str) -> bool:
        """Whether there is a file of that name, whole or not."""
        return os.path.isfile(self._path(key))

    def verify(self, key: str) -> str | None:
        """Why the block cannot be used; None when it is whole. Counts nothing."""
        outcome = block_file.read({key: self._path(key)}, self._digest)[key]
        return str(outcome) if isinstance(outcome, UnusableError) else None

    def delete(self, key: str) -> bool:
        """Remove a block, for good when this returns; False when there was none."""
        return self.delete_many([key]) == 1

    def delete_many(self, keys: Collection[str]) -> int:
        """Remove blocks; returns how many there were. Raises StoreError when the disk refuses."""
        changed = set()
        deleted = 0
        try:
            for key in set(keys):
                path = self._path(key)
                with self._lock:
                    if self._ranking is not None:
                        self._ranking.discard(key)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                    changed.add(os.path.dirname(path))
                    deleted += 1
            for folder in changed:
                sync_folder(Path(folder))
        except OSError as error:
            raise StoreError(f"cannot delete a block of {self.folder}: {error.strerror or error}") from error
        return deleted

    def keys(self) -> Iterator[str]:
        """The keys of all blocks, of whichever model and condition, in no order."""
        for entry in self._files():
            if _is_key(key := entry.name.removesuffix(_SUFFIX)) and entry.name.endswith(_SUFFIX):
                yield key

    def size_of(self, key: str) -> int:
        """Bytes of a block on disk; 0 when there is none."""
        try:
            return os.stat(self._path(key)).st_size
        except (FileNotFoundError, NotADirectoryError):
            return 0

    def time_of(self, key: str) -> int | None:
        """When a block was written, put again or last used, in nanoseconds; None when there is none."""
        try:
            return os.stat(self._path(key)).st_mtime_ns
        except (FileNotFoundError, NotADirectoryError):
            return None

    @property
    def num_bytes(self) -> int:
        """Bytes of all blocks on disk."""
        return sum(self.size_of(key) for key in self.keys())

    def sweep_temporary(self, *, older_than: float = _LEFT_OVER_SECONDS) -> int:
        """Remove what killed writers left, from that many seconds ago or longer; returns how many files."""
        removed = 0
        for entry in self._files():
            if entry.name.startswith(".") and entry.name.endswith(_TEMPORARY):
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime >= older_than:
                        os.unlink(entry)
                        removed += 1
        return removed

    def _path(self, key: str) -> str:
        if not _is_key(key):
            raise ValueError(f"not the key of a block: {key!r}")
        return f"{self._root}/{key[:2]}/{key}{_SUFFIX}"  # a pathlib.Path here costs as much as reading 100 kB

    def _files(self) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(self.folder) as entries:
                folders = sorted(entry.path for entry in entries if len(entry.name) == 2)
        except (FileNotFoundError, NotADirectoryError):
            return
        for folder in folders:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
                yield from entries

    def _write(self, block: Block, cost: float) -> tuple[str, int]:
        """(key, bytes) of a block that is on the disk, but for its folder's entry."""
        key, parts = block_file.encode(block, cost=cost)
        path = Path(self._path(key))
        if path.exists() and self.verify(key) is None:
            with contextlib.suppress(OSError):
                os.utime(path)
            return key, self.size_of(key)
        temporary = path.with_name(f".{key[:16]}.{secrets.token_hex(8)}{_TEMPORARY}")
        try:
            with _create(temporary) as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        return key, sum(len(part) for part in parts)

    def _judge(self, key: str, outcome: Reading | UnusableError) -> Block | None:
        if isinstance(outcome, UnusableError):
            self._lost("missing" if isinstance(outcome, MissingError) else "damaged", key, str(outcome))
            return None
        self._used(key, outcome.modified)
        return outcome.block()

    def _used(self, key: str, modified: float) -> None:
        if time.time() - modified > _TOUCH_SECONDS:
            with contextlib.suppress(OSError):
                os.utime(self._path(key))
        with self._lock:
            self.counts["hit"] += 1
            if self._ranking is not None:
                self._ranking.touch(key)

    def _lost(self, kind: str, key: str, reason: str) -> None:
        with self._lock:
            self.counts[kind] += 1
            count = self.counts[kind]
        _log.warning("block %s of cached key-values is not used: %s (%s blocks so far: %d)",
                     key[:12], reason, kind, count)  # fmt: skip

    def _make_room(self, put: dict[str, tuple[int, float]]) -> None:
        """Count what was put, and delete others until all fit."""
        assert self.max_bytes is not None
        with self._lock:
            self._unscanned += sum(size for size, _ in put.values())
            due = self._ranking is None or self._unscanned * _RESCAN_SHARE > self.max_bytes
        ranking = self._scan() if due or self._ranking is None else self._ranking
        with self._lock:
            for key, (size, cost) in put.items():
                ranking.put(key, size=size, cost=cost)
            while ranking.num_bytes > self.max_bytes:
                victim = ranking.pop_lowest(spare=put.keys())
                if victim is None:
                    break
                with contextlib.suppress(OSError):  # gone already, or not ours to delete
                    os.unlink(self._path(victim))
                    self.counts["evicted"] += 1

    def _scan(self) -> Ranking:
        """The ranking, brought up to what is in the folder, which other processes change too.

        The clock of the process that wrote a block is not on disk. At the first scan the order by last use stands for
        it: while a full store is replaced once, the clock rises by about the mean of cost / size.
        """
        with self._lock:
            self._unscanned = 0
            known = set(self._ranking or ())
        there = {}
        for key in self.keys():
            with contextlib.suppress(FileNotFoundError):
                there[key] = os.stat(self._path(key))
        new = sorted(there.keys() - known, key=lambda key: there[key].st_mtime_ns)
        costs = [block_file.cost_of(self._path(key)) for key in new]
        with self._lock:
            rise = 0.0
            if self._ranking is None:
                self._ranking = Ranking()
                rise = sum(cost / max(there[key].st_size, 1) for key, cost in zip(new, costs, strict=True))
            for key in known - there.keys():
                self._ranking.discard(key)
            for key, cost in zip(new, costs, strict=True):
                self._ranking.clock += rise / len(new) ** 2
                self._ranking.put(key, size=there[key].st_size, cost=cost)
            return self._ranking


def _default_cost(block: Block) -> float:
    lists = (value for value in block.fields.values() if isinstance(value, (list, tuple)))
    return float(sum(map(len, lists)) or 1)


def _create(path: Path) -> BinaryIO:
    """A new file, in a new folder where there is none yet."""
    try:
        return path.open("xb")
    except FileNotFoundError:
        root = path.parent.parent
        missing = [folder for folder in (root, *root.parents) if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            sync_folder(folder.parent)
        return path.open("xb")


def _will_need(path: str) -> None:
    with contextlib.suppress(OSError), open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
