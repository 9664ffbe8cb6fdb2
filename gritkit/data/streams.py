"""Sources that are read while training: a process's share of their records, block by block, again and again.

Read is what ``reading`` reads, and besides whatever a function gives anew each time it is called. Process r of w reads
the records whose number is r modulo w; lines of the others are passed over unparsed. One block of records is in memory
at a time. A bad record is an error when its block is read: it can be no sooner.

This module knows nothing about tokens or batches.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gritkit.data.reading import Sources, data_set, file_rows, located, sorted_kinds
from gritkit.data.records import Kind
from gritkit.data.sources import Problems
from gritkit.errors import InputError

OUTCOME = "training stopped there"
Rows = Callable[[int, int, int], Iterator[tuple[int, Any]]]
"""(process, number of processes, records to pass over) -> place and record of each of the process's others."""


@dataclass(frozen=True)
class Stream:
    """Records of one kind that are read when they are needed; contrastive batches come from one stream each."""

    name: str
    kind: Kind
    rows: Rows
    num_bytes: int | None = None
    """Of the file, where it is one; a run is not resumed on another."""

    @staticmethod
    def of(name: str, read: Callable[[], Iterable[Any]]) -> Stream:
        """From a function that gives all records (or their JSON objects), the same ones whenever it is called."""

        def rows(rank: int, world_size: int, skip: int) -> Iterator[tuple[int, Any]]:
            return itertools.islice(enumerate(read()), rank + skip * world_size, None, world_size)

        return Stream(name, _first_kind(name, rows), rows)


StreamData = str | os.PathLike[str] | Sequence[Stream] | Any
"""A path, a hub id, streams, or a data set of the library ``datasets``."""


def open_streams(data: StreamData) -> list[Stream]:
    """The streams of a training set; of each, one record is read.

    Raises:
        RecordError: naming a first record that is bad, or a file without records.
        InputError: where there is nothing that can be read again and again.
    """
    if isinstance(data, (list, tuple)) and data and all(isinstance(item, Stream) for item in data):
        return list(data)
    if isinstance(data, (str, os.PathLike)):
        return [_at(place) for place in located(data)]
    if _is_data_set(data):
        return [_of_data_set("data set", data)]
    raise InputError(f"streams are read from a path, a hub id, a data set or Stream.of(...), not {type(data).__name__}")


def _at(place: Path | str) -> Stream:
    if isinstance(place, Path) and place.is_file():
        rows = functools.partial(_file_share, place)
        return Stream(place.name, _first_kind(place.name, rows), rows, place.stat().st_size)
    return _of_data_set(place if isinstance(place, str) else place.name, data_set(place, streaming=True))


def _file_share(path: Path, rank: int, world_size: int, skip: int) -> Iterator[tuple[int, Any]]:
    return file_rows(path, rank + skip * world_size, world_size)


def _is_data_set(data: Any) -> bool:
    datasets = sys.modules.get("datasets")  # who holds one of its objects has imported it
    return datasets is not None and isinstance(data, (datasets.Dataset, datasets.IterableDataset))


def _of_data_set(name: str, loaded: Any) -> Stream:
    import datasets

    rows = functools.partial(_share if isinstance(loaded, datasets.Dataset) else _streamed_share, loaded)
    return Stream(name, _first_kind(name, rows), rows)


def _share(loaded: Any, rank: int, world_size: int, skip: int) -> Iterator[tuple[int, Any]]:
    return ((row, loaded[row]) for row in range(rank + skip * world_size, len(loaded), world_size))


def _streamed_share(loaded: Any, rank: int, world_size: int, skip: int) -> Iterator[tuple[int, Any]]:
    """By the library's own division, which gives whole shards where it can; places count within the share."""
    from datasets.distributed import split_dataset_by_node

    part = split_dataset_by_node(loaded, rank, world_size) if world_size > 1 else loaded
    return itertools.islice(enumerate(part), skip, None)


def _first_kind(name: str, rows: Rows) -> Kind:
    problems = Problems("nothing was trained")
    sources = sorted_kinds(name, itertools.islice(rows(0, 1, 0), 1), problems)
    if not sources and not problems.total:
        problems.add(name, "it has no records")
    problems.check()
    return sources[0].kind


class Blocks:
    """One process's share of a stream in blocks of ``size`` records, the last one shorter."""

    def __init__(self, stream: Stream, size: int, rank: int, world_size: int) -> None:
        self.stream = stream
        self._size, self._rank, self._world_size = size, rank, world_size
        self._rows: Iterator[tuple[int, Any]] = iter(())
        self._next: tuple[int, int] | None = None

    def read(self, cycle: int, block: int) -> Sources:
        """The one source that a block is; none past the last block. The next block is read on from there, any other by
        passing over those before it.

        Raises:
            RecordError: naming every bad record of the block. InputError: where the process has no record at all.
        """
        if self._next != (cycle, block):
            self._rows = self.stream.rows(self._rank, self._world_size, block * self._size)
        self._next = None
        name, problems = self.stream.name, Problems(OUTCOME)
        source = sorted_kinds(name, itertools.islice(self._rows, self._size), problems, kind=self.stream.kind)
        problems.check()
        if not source and not block:
            raise InputError(
                f"{name} has no record for process {self._rank} of {self._world_size}: it has fewer records than there "
                "are processes; add records or do not stream it"
            )
        self._next = (cycle, block + 1)
        return source
