"""Documents that were read, in three tiers: decoded on the device, coded in memory, coded in files.

    get     device -> memory -> disk; what is found lower is kept higher, each tier within its bytes
    keep    disk and memory at once
    prefix  the beginning of a prompt as a whole, in memory alone: it must not outlive the documents it was made of

A block that is missing or unusable is None and counted, and the caller reads the document again.

This module knows nothing about retrieval, rows or answers.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence

import torch

from gritkit.errors import StoreError
from gritkit.kv.blocks import BlockStore
from gritkit.kv.codecs import StoredKV
from gritkit.kv.cost_cache import CostCache
from gritkit.kv.dockv import DocKV, ReadDocument
from gritkit.rag.coding import BlockCoder
from gritkit.rag.rates import Rates

_SHARE_OF_PREFIXES = 4  # of the budget in memory, beside it

_log = logging.getLogger("gritkit")


class DocumentCache:
    """The key-values of one model's documents, wherever they lie."""

    def __init__(
        self, coder: BlockCoder, blocks: BlockStore, rates: Rates, *, memory_bytes: int, device_bytes: int
    ) -> None:
        self.counts: Counter[str] = Counter()
        """Reads so far that ``device``, ``memory`` or ``disk`` answered, and ``lost`` ones."""
        self._coder = coder
        self._blocks = blocks
        self._rates = rates
        self._memory: CostCache[StoredKV] = CostCache(memory_bytes)
        self._prefixes: CostCache[DocKV] = CostCache(memory_bytes // _SHARE_OF_PREFIXES)
        self._device: CostCache[DocKV] = CostCache(device_bytes)
        self._device_bytes = device_bytes

    @property
    def coder(self) -> BlockCoder:
        return self._coder

    def resize(self, memory_bytes: int) -> None:
        """Another budget in memory from now on; what has no room in it goes."""
        self._memory.resize(memory_bytes)
        self._prefixes.resize(memory_bytes // _SHARE_OF_PREFIXES)

    def get_many(self, keys: Sequence[str]) -> list[ReadDocument | None]:
        """The documents of these keys; None for each that must be read again, as for an empty key."""
        found: dict[str, ReadDocument | None] = {}
        for key in filter(None, dict.fromkeys(keys)):
            for tier, cache in (("device", self._device), ("memory", self._memory)):
                if (document := cache.get(key)) is not None:
                    found[key] = document
                    self.counts[tier] += 1
                    break
        found |= self._load([key for key in dict.fromkeys(keys) if key and key not in found])
        if self._device_bytes:
            found = {key: self._on_device(key, document) for key, document in found.items()}
        return [found.get(key) for key in keys]

    def keep(self, document: DocKV) -> ReadDocument:
        """Write a document's block and have it in memory; returns it as it is read back.

        A disk that refuses is a warning: the document is there, and is computed again when it is needed again.
        """
        block = self._coder.block(document)
        try:
            self._blocks.put(block)
        except StoreError as error:
            _log.warning("key-values that were computed again are not kept: %s", error)
        if (stored := self._coder.document(block)) is None:
            return document
        self._remember(block.key, stored)
        return stored

    def read_ahead(self, keys: Sequence[str]) -> None:
        """Ask the system to have the files of these blocks ready."""
        self._blocks.read_ahead([key for key in keys if key and key not in self._memory and key not in self._device])

    def seconds_to_load(self, keys: Iterable[str]) -> float | None:
        """How long fetching them should take, by what was measured here; None where nothing was."""
        waiting = [key for key in set(keys) if key and key not in self._memory and key not in self._device]
        return self._rates.seconds("disk", sum(self._blocks.size_of(key) for key in waiting)) if waiting else 0.0

    def prefix(self, ids: Sequence[int]) -> ReadDocument | None:
        """The key-values of exactly this beginning of a prompt."""
        return self._prefixes.get(self._coder.prefix_key(ids))

    def has_prefix(self, ids: Sequence[int]) -> bool:
        return self._coder.prefix_key(ids) in self._prefixes

    def keep_prefix(self, document: DocKV) -> None:
        """Have the beginning of a prompt for the next one that begins so."""
        key = self._coder.prefix_key(document.ids)
        self._prefixes.put(key, document, size=document.num_bytes, cost=len(document))

    def drop(self, keys: Iterable[str]) -> None:
        """Forget documents, and every beginning of a prompt, which may hold them. Their files are the caller's."""
        for key in keys:
            self._device.pop(key)
            self._memory.pop(key)
        self._prefixes.clear()

    def _load(self, keys: Sequence[str]) -> dict[str, ReadDocument | None]:
        since = time.perf_counter()
        blocks = self._blocks.get_many(keys) if keys else []
        self._rates.measured("disk", sum(block.num_bytes for block in blocks if block), time.perf_counter() - since)
        found: dict[str, ReadDocument | None] = {}
        for key, block in zip(keys, blocks, strict=True):
            stored = self._coder.document(block) if block is not None else None
            if stored is None:
                if block is not None and self._coder.owns(block):
                    self._blocks.delete(key)  # whole, and named so, but not what this model would have written
                self.counts["lost"] += 1
            else:
                self.counts["disk"] += 1
                self._remember(key, stored)
            found[key] = stored
        return found

    def _remember(self, key: str, document: StoredKV) -> None:
        self._memory.put(key, document, size=document.num_bytes, cost=len(document))

    def _on_device(self, key: str, document: ReadDocument | None) -> ReadDocument | None:
        if not isinstance(document, StoredKV):
            return document
        decoded = document.decoded(torch.device(self._coder.model.device))
        self._device.put(key, decoded, size=decoded.num_bytes, cost=len(document))
        return decoded
