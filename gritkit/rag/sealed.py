"""A store whose rows carry a checksum, so that a flipped bit in a text or a vector is noticed and never answered from.

Databases trust their disks: LanceDB reads a row whose bytes have changed as if nothing had happened. The checksum
travels at the end of a row's digest, ``DIGEST~TTTTTTTTTTTTTTTTVVVVVVVVVVVVVVVV``, one half over everything but the
vector (search results come without theirs) and one over the vector. It finds accidents; it is no signature.

This module knows nothing about which database is behind it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from gritkit.errors import MissingExtraError, StoreError
from gritkit.rag.store import DocumentStore, Head, Listed, Row, Size, Vector

_SEPARATOR = "~"
_HALF = 16

_log = logging.getLogger("gritkit")


class SealedStore:
    """A :class:`gritkit.rag.store.DocumentStore` around another. Rows go in and come out as they are without it.

    Raises:
        MissingExtraError: without the package xxhash.
    """

    def __init__(self, store: DocumentStore) -> None:
        try:
            from xxhash import xxh3_64_hexdigest
        except ImportError:
            raise MissingExtraError("xxhash", "rag") from None
        self._store = store
        self._checksum: Callable[[bytes], str] = xxh3_64_hexdigest

    def size(self) -> Size:
        return self._store.size()

    def heads(self, documents: Sequence[str]) -> dict[str, Head]:
        found = self._store.heads(documents)
        return {name: dataclasses.replace(head, digest=_parts(head.digest)[0]) for name, head in found.items()}

    def listed(self, limit: int, after: str | None = None) -> list[Listed]:
        """What is listed has no checksum: only whole rows have one."""
        return self._store.listed(limit, after)

    def get(self, documents: Sequence[str]) -> dict[str, list[Row]]:
        """Raises StoreError for a damaged row."""
        return {name: [self._whole(row) for row in rows] for name, rows in self._store.get(documents).items()}

    def replace(self, rows: Sequence[Row]) -> None:
        self._store.replace([self._sealed(row) for row in rows])

    def delete(self, documents: Sequence[str]) -> int:
        return self._store.delete(documents)

    def nearest(self, vector: Vector, top_k: int, tags: Sequence[str] = ()) -> list[tuple[Row, float]]:
        """Damaged rows are left out, with a warning."""
        return self._whole_ones(self._store.nearest(vector, top_k, tags))

    def matching(self, text: str, top_k: int, tags: Sequence[str] = ()) -> list[tuple[Row, float]]:
        """Damaged rows are left out, with a warning."""
        return self._whole_ones(self._store.matching(text, top_k, tags))

    def referenced(self, block_keys: Iterable[str]) -> set[str]:
        return self._store.referenced(block_keys)

    def scan(self, batch_size: int = 256, *, damaged: Callable[[Row], None] | None = None) -> Iterator[list[Row]]:
        """``damaged`` is given the rows that are, which are then left out. Raises StoreError for one without it."""
        for rows in self._store.scan(batch_size):
            if damaged is None:
                yield [self._whole(row) for row in rows]
                continue
            whole = []
            for row in rows:
                opened = self._opened(row)
                if opened is None:
                    damaged(row)
                else:
                    whole.append(opened)
            yield whole

    def optimize(self) -> None:
        self._store.optimize()

    def close(self) -> None:
        self._store.close()

    def _sealed(self, row: Row) -> Row:
        assert row.vector is not None, "every row brings a vector"
        return dataclasses.replace(row, digest=f"{row.digest}{_SEPARATOR}{self._of_text(row)}{self._of_vector(row)}")

    def _opened(self, row: Row) -> Row | None:
        """The row as it went in; None when it is another."""
        digest, text, vector = _parts(row.digest)
        opened = dataclasses.replace(row, digest=digest)
        if text != self._of_text(opened) or (row.vector is not None and vector != self._of_vector(row)):
            return None
        return opened

    def _whole(self, row: Row) -> Row:
        opened = self._opened(row)
        if opened is None:
            raise StoreError(
                f"document {row.document!r:.100} is damaged in the store: delete it and index it again "
                "(gritkit kb verify lists every damaged one)"
            )
        return opened

    def _whole_ones(self, found: Iterable[tuple[Row, float]]) -> list[tuple[Row, float]]:
        whole = []
        for row, score in found:
            opened = self._opened(row)
            if opened is None:
                _log.warning("document %.100r is damaged in the store and left out: delete it and index it again",
                             row.document)  # fmt: skip
            else:
                whole.append((opened, score))
        return whole

    def _of_text(self, row: Row) -> str:
        texts = [row.document, row.text, row.metadata, *row.tags, row.digest, row.block_key, row.fingerprint]
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        lengths = [row.number, row.count, len(row.tags), *map(len, encoded), *row.token_ids]
        return self._checksum(np.array(lengths, dtype="<i8").tobytes() + b"".join(encoded))

    def _of_vector(self, row: Row) -> str:
        assert row.vector is not None
        return self._checksum(row.vector.astype("<f4").tobytes())


def _parts(digest: str) -> tuple[str, str, str]:
    """(the digest that went in, checksum of the rest, checksum of the vector); the latter wrong where there is none."""
    own, _, seal = digest.rpartition(_SEPARATOR)
    return own, seal[:_HALF], seal[_HALF:]
