"""What a knowledge base asks of the database behind it: chunks of documents by id, by vector and by words.

A document is a list of chunks, one :class:`Row` each; it is replaced and deleted as a whole, in one commit, so a reader
finds all of its chunks or none. :class:`gritkit.rag.lance.LanceStore` is the embedded one,
:class:`gritkit.rag.postgres.PostgresStore` the server's; another needs these few methods and nothing else.

This module knows nothing about models, key-values or any database, and imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
QUERY_CHARS = 4096
"""A search for words looks at no more characters of its text."""


def words_of(text: str) -> str:
    """What a search for words looks at: characters that every database can hold, and not too many of them."""
    return text[:QUERY_CHARS].replace("\0", " ").encode("utf-8", "replace").decode()


@dataclass(frozen=True, eq=False)
class Row:
    """One chunk of a document as it is stored."""

    document: str
    """Id of the document that it is a part of."""
    number: int
    """Its place among the document's chunks, from 0."""
    count: int
    """How many chunks the document has."""
    text: str
    metadata: str
    """JSON of the document's metadata, the same for equal metadata."""
    tags: tuple[str, ...]
    """What filters match."""
    digest: str
    """Of the document's whole text and of how it was cut, so that an unchanged one is passed over."""
    token_ids: tuple[int, ...]
    """As the model read the chunk, so that its key-values can be computed again exactly."""
    block_key: str
    """Where its key-values are kept; empty where none are."""
    fingerprint: str
    """Of the model that read it."""
    vector: Vector | None = None
    """Unit length; left out of search results."""

    @property
    def id(self) -> str:
        """Unique in a knowledge base."""
        return f"{self.document}#{self.number}"


@dataclass(frozen=True)
class Head:
    """What is known of a document without reading its texts."""

    digest: str
    metadata: str
    fingerprint: str
    block_keys: tuple[str, ...]


@dataclass(frozen=True)
class Listed:
    """A document of a list: what is known of it without its texts."""

    document: str
    chunks: int
    metadata: str
    """JSON, of its first chunk."""
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Size:
    """How much a store holds."""

    documents: int
    chunks: int


class DocumentStore(Protocol):
    """A method raises StoreError when the database fails; a call is whole or has not happened."""

    def size(self) -> Size: ...

    def heads(self, documents: Sequence[str]) -> dict[str, Head]:
        """The documents that exist among these ids."""

    def listed(self, limit: int, after: str | None = None) -> list[Listed]:
        """The first so many documents in the order of their ids (of their UTF-8), of those whose id follows ``after``.

        So all of them come in pages, while others are written and deleted: one that is there all the time comes once.
        """

    def get(self, documents: Sequence[str]) -> dict[str, list[Row]]:
        """The chunks of the documents that exist, in order, vectors included."""

    def replace(self, rows: Sequence[Row]) -> None:
        """Every document that the rows name has exactly these chunks afterwards, whatever it had before."""

    def delete(self, documents: Sequence[str]) -> int:
        """Remove documents; returns how many there were."""

    def nearest(self, vector: Vector, top_k: int, tags: Sequence[str] = ()) -> list[tuple[Row, float]]:
        """The nearest chunks among those that have all the tags, by dot product, best first; equal ones by id.

        Exact up to a size, beyond it by an index whose recall was measured when it was built (:meth:`optimize`).
        """

    def matching(self, text: str, top_k: int, tags: Sequence[str] = ()) -> list[tuple[Row, float]]:
        """The chunks that share words with the text, by the database's full-text score (BM25), best first.

        The text is words and nothing else: no operators, and nothing in it is an error.
        """

    def referenced(self, block_keys: Iterable[str]) -> set[str]:
        """Which of these blocks some chunk still needs."""

    def scan(self, batch_size: int = 256) -> Iterator[list[Row]]:
        """All chunks, vectors included, as of one moment; in lists of about ``batch_size``, each of whole documents."""

    def optimize(self) -> None:
        """Compact, drop old versions, and build or extend the indices that the size calls for."""

    def searched_by(self) -> str:
        """How :meth:`nearest` searches at the present size, for people: exact, or by an index and its recall."""

    def close(self) -> None:
        """Let go of the database; the store is not used afterwards."""
