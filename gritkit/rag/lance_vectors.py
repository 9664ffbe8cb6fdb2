"""The vectors of a LanceDB table in memory: an exact search is one matrix product.

LanceDB's own exact search reads the vectors from their files each time, which takes several times as long. The matrix
belongs to one version of the table; for the next one only the rows that came are read.

This module knows nothing about documents, and imports no torch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gritkit.rag.lance_index import matrix
from gritkit.rag.ranking import CLOSE, dots
from gritkit.rag.store import Vector

_ROWS_AT_ONCE = 4096
_FILTERS_KEPT = 16


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One version of a table with its vectors."""

    table: Any
    """A handle that stays at this version."""
    version: int
    addresses_N: NDArray[np.uint64]
    """Where each row lies, ascending; a row that moves gets another address, and an address never another row."""
    matrix_ND: NDArray[np.float32]
    _masks: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    def nearest(self, query: Vector, top_k: int, condition: str) -> NDArray[np.uint64]:
        """The addresses of the rows nearest to a query among those that meet an SQL condition; equal ones by id."""
        among = self._among(condition) if condition else None
        scores = self.matrix_ND @ query
        if among is not None:
            scores = scores[among]
        if not len(scores):
            return self.addresses_N[:0]
        close = np.arange(len(scores))
        if len(scores) > top_k:
            close = np.flatnonzero(scores >= np.partition(scores, -top_k)[-top_k] - CLOSE)
        positions = close if among is None else among[close]
        exact = dots(self.matrix_ND[positions], query)
        order = np.argsort(-exact, kind="stable")
        positions, exact = positions[order], exact[order]
        if len(positions) > top_k and exact[top_k] == exact[top_k - 1]:  # the last place is tied
            surer = positions[exact > exact[top_k - 1]]
            tied = self.addresses_N[positions[exact == exact[top_k - 1]]]
            ids = self.table.take_row_ids(tied.tolist()).select(["id"]).to_arrow()["id"].to_pylist()
            by_id = [address for _, address in sorted(zip(ids, tied.tolist(), strict=True))]
            chosen = np.asarray(by_id[: top_k - len(surer)], dtype=np.uint64)
            return np.concatenate([self.addresses_N[surer], chosen])
        return self.addresses_N[positions[:top_k]]

    def _among(self, condition: str) -> NDArray[np.int64]:
        """The positions of the rows that meet a condition; the last few conditions are remembered."""
        found = self._masks.get(condition)
        if found is None:
            query = self.table.search().where(condition).limit(None).select(["number"]).with_row_id(True)
            found = np.sort(np.searchsorted(self.addresses_N, query.to_arrow()["_rowid"].to_numpy()))
            if len(self._masks) >= _FILTERS_KEPT:
                self._masks.pop(next(iter(self._masks)), None)
            self._masks[condition] = found
        return found


class VectorCache:
    """The newest :class:`Snapshot` of a table; safe to ask from several threads."""

    def __init__(self, open_at: Callable[[int], Any], dim: int) -> None:
        self._open_at = open_at
        self._dim = dim
        self._lock = threading.Lock()
        self._held: Snapshot | None = None

    def at(self, version: int) -> Snapshot:
        """The table as of a version."""
        with self._lock:
            if self._held is None or self._held.version != version:
                older = self._held if self._held is not None and self._held.version < version else None
                self._held = _snapshot(self._open_at(version), version, self._dim, older)
            return self._held

    def drop(self) -> None:
        """Give the memory back."""
        with self._lock:
            self._held = None


def _snapshot(table: Any, version: int, dim: int, older: Snapshot | None) -> Snapshot:
    rows = table.search().select(["number"]).with_row_id(True).to_arrow()["_rowid"].to_numpy()
    addresses_N = np.sort(rows).astype(np.uint64)
    matrix_ND = np.empty((len(addresses_N), dim), np.float32)
    known_N = np.zeros(len(addresses_N), bool)
    if older is not None and len(addresses_N):
        known_N = np.isin(addresses_N, older.addresses_N, assume_unique=True)
        if known_N.mean() > 0.5:
            matrix_ND[known_N] = older.matrix_ND[np.searchsorted(older.addresses_N, addresses_N[known_N])]
            new = np.flatnonzero(~known_N)
            for start in range(0, len(new), _ROWS_AT_ONCE):
                part = new[start : start + _ROWS_AT_ONCE]
                taken = table.take_row_ids(addresses_N[part].tolist()).select(["vector"]).to_arrow()
                matrix_ND[part] = matrix(taken["vector"])
            return Snapshot(table, version, addresses_N, matrix_ND)
    for batch in table.search().select(["vector"]).with_row_id(True).to_batches(_ROWS_AT_ONCE):
        matrix_ND[np.searchsorted(addresses_N, batch["_rowid"].to_numpy())] = matrix(batch["vector"])
    return Snapshot(table, version, addresses_N, matrix_ND)
