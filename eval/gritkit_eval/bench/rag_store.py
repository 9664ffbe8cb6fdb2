"""The rest of ``bench rag``: how fast blocks are loaded beside a plain read of them, and what each codec costs.

This module knows nothing about answers.
"""

from __future__ import annotations

import ctypes
import mmap
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from gritkit import GritModel
from gritkit.errors import GritkitError
from gritkit.kv.blocks import Block, BlockStore
from gritkit.kv.codecs import CodecName, StoredKV, encode
from gritkit.kv.dockv import DocKV
from gritkit_eval.bench.harness import Timing
from gritkit_eval.bench.plain_read import forget, read_plainly

BLOCK_MB = (0.5, 2.0, 8.0, 32.0)
_AT_ONCE = 4
"""Blocks of one read: what an answer asks for."""


@dataclass(frozen=True)
class LoadRow:
    """Reads of blocks of one size."""

    block_mb: float
    cold: bool
    store: Timing
    plain: Timing

    @property
    def share(self) -> float:
        """The store's rate, of the plain read's."""
        return self.store.ratio_to(self.plain)

    def rate(self, timing: Timing) -> float:
        """Megabytes a second."""
        return _AT_ONCE * self.block_mb / timing.median


@dataclass(frozen=True)
class CodecRow:
    """One codec."""

    codec: str
    bytes_per_token: float
    key_error: float
    """||decoded - read|| / ||read|| of all keys together, without position."""
    value_error: float
    encode_rate: float
    """Megabytes a second of key-values as the model has them."""
    decode_rate: float


_TRIES = 20


def cold(paths: Sequence[Path]) -> None:
    """Have the next read of these files come from the disk.

    Raises:
        GritkitError: where the system keeps them in memory all the same (a file system in memory does).
    """
    for _ in range(_TRIES):
        forget(paths)
        kept = {path: share for path in paths if (share := in_memory(path)) > 0.01}
        if not kept:
            return
        time.sleep(0.1)  # a read-ahead that is under way brings pages back
    path, share = next(iter(kept.items()))
    raise GritkitError(
        f"{share:.0%} of {path} stay in memory after the system was told to drop them: choose a folder on a disk with "
        "--folder"
    )


def in_memory(path: Path) -> float:
    """Share of a file's pages that the system holds in memory, by mincore(2)."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as m:
        pages = -(-len(m) // mmap.PAGESIZE)
        there = (ctypes.c_ubyte * pages)()
        start = ctypes.c_char.from_buffer(m)
        address = ctypes.c_void_p(ctypes.addressof(start))
        failed = ctypes.CDLL(None, use_errno=True).mincore(address, ctypes.c_size_t(len(m)), there)
        del start  # the map cannot be closed before
    if failed:
        raise GritkitError(f"mincore failed for {path} with error {ctypes.get_errno()}")
    return sum(page & 1 for page in there) / pages


def load_rates(folder: Path, rounds: int, sizes: Sequence[float]) -> list[LoadRow]:
    """Both ways in turn, cold and warm, after one uncounted read each."""
    rows = []
    chance = np.random.default_rng(0)
    for size in sizes:
        store = BlockStore(folder / f"blocks-{size}")
        blocks = [
            Block({"ids": [number]}, (chance.integers(0, 255, int(size * 1e6), dtype=np.uint8),))
            for number in range(_AT_ONCE)
        ]
        keys = store.put_many(blocks)
        paths = sorted(store.folder.glob("??/*.kv"))
        ways: dict[str, Callable[[], object]] = {
            "store": lambda store=store, keys=keys: store.get_many(keys),  # type: ignore[misc]
            "plain": lambda paths=paths: read_plainly(paths),  # type: ignore[misc]
        }
        for is_cold in (True, False):
            seconds: dict[str, list[float]] = {way: [] for way in ways}
            for number in range(rounds + 1):
                for way in list(ways) if number % 2 else list(ways)[::-1]:
                    if is_cold:
                        cold(paths)
                    since = time.perf_counter()
                    ways[way]()
                    if number:
                        seconds[way].append(time.perf_counter() - since)
            rows.append(LoadRow(size, is_cold, Timing(tuple(seconds["store"])), Timing(tuple(seconds["plain"]))))
        assert store.counts["damaged"] == store.counts["missing"] == 0
    return rows


def codecs(real: GritModel, text: str, *, num_tokens: int, rounds: int) -> list[CodecRow]:
    """Errors on what a model really reads; rates on ``num_tokens`` tokens of 8 layers with 2 heads of 64."""
    _, (document,) = real.read([text], truncate=True)
    shape = (2, num_tokens, 64)
    torch.manual_seed(0)
    wide = DocKV((0,) * num_tokens, 0, 0, *(tuple(torch.randn(shape) for _ in range(8)) for _ in range(2)))
    rows = []
    for codec in get_args(CodecName):
        coded, stored = (StoredKV(one.ids, 0, 0, codec, torch.float32, encode(one, codec)) for one in (document, wide))
        back = coded.decoded(torch.device("cpu"))
        times: dict[str, list[float]] = {"encode": [], "decode": []}
        for number in range(rounds + 1):
            for way, do in (("encode", _encoding(wide, codec)), ("decode", _decoding(stored))):
                since = time.perf_counter()
                do()
                if number:
                    times[way].append(time.perf_counter() - since)
        rates = {way: wide.num_bytes / 1e6 / statistics.median(each) for way, each in times.items()}
        rows.append(
            CodecRow(
                codec, stored.num_bytes / num_tokens, _error(back.keys, document.keys),
                _error(back.values, document.values), rates["encode"], rates["decode"],
            )
        )  # fmt: skip
    return rows


def _encoding(document: DocKV, codec: CodecName) -> Callable[[], object]:
    return lambda: encode(document, codec)


def _decoding(stored: StoredKV) -> Callable[[], object]:
    """A layer at a time, as an answer decodes it."""
    return lambda: [stored.layer(index, torch.device("cpu")) for index in range(stored.num_layers)] and None


def _error(made: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    difference = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(made, wanted, strict=True))
    return float((difference / sum(float(b.double().square().sum()) for b in wanted)) ** 0.5)
