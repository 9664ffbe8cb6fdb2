"""What a knowledge base asks of the store behind it: rows by id, the nearest rows of a vector.

:class:`gritkit.rag.lance.LanceStore` is the embedded one; a server needs these few methods and nothing else.

This module knows nothing about models, key-values or any database.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Row:
    """One document as it is stored."""

    id: str
    text: str
    metadata: str
    """JSON, the same for equal metadata."""
    tags: tuple[str, ...]
    """What filters match."""
    vector: Vector | None
    """Unit length; left out of search results."""
    token_ids: tuple[int, ...]
    """As the model read it, so that its key-values can be computed again exactly."""
    block_key: str
    """Where its key-values are kept; empty for a model whose documents cannot be moved."""
    fingerprint: str
    """Of the model that read it."""


class DocumentStore(Protocol):
    """Rows with unique ids. A method raises StoreError when the store fails; a call is whole or has not happened."""

    def __len__(self) -> int: ...

    def get(self, ids: Sequence[str]) -> dict[str, Row]:
        """The rows that exist among these ids, vectors included."""

    def upsert(self, rows: Sequence[Row]) -> None:
        """Insert rows, each replacing the one of its id; the ids of one call differ."""

    def delete(self, ids: Sequence[str]) -> int:
        """Remove rows; returns how many there were."""

    def search(self, vector: Vector, top_k: int, tags: Sequence[str]) -> list[tuple[Row, float]]:
        """The nearest rows among those that have all the tags, by dot product, best first; exact."""

    def referenced(self, block_keys: Sequence[str]) -> set[str]:
        """Which of these blocks some row still needs."""

    def close(self) -> None:
        """Let go of the store; it is not used afterwards."""
