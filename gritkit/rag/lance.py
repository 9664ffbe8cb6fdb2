"""The embedded store: one LanceDB table in a folder, searched exactly.

Writes go through ``merge_insert`` (LanceDB's ``add`` would duplicate ids), one table version per call; small files are
compacted when many have gathered. Filters run inside LanceDB before the search, so ``top_k`` counts what passes them.

This module knows nothing about models or key-values.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from gritkit.errors import MissingExtraError, StoreError
from gritkit.rag.store import Row, Vector

_TABLE = "documents"
_COLUMNS = ["id", "text", "metadata", "tags", "token_ids", "block_key", "fingerprint"]
_MANY_FRAGMENTS = 32
_IDS_AT_ONCE = 500  # a filter is parsed as text; thousands of ids in one would be slow


class LanceStore:
    """A :class:`gritkit.rag.store.DocumentStore`. Several may be open on one folder; each sees the others' writes.

    Raises:
        MissingExtraError: without the package lancedb. StoreError: for a folder that cannot be opened.
    """

    def __init__(self, folder: Path, dim: int) -> None:
        os.environ.setdefault("LANCEDB_LOG", "error")  # its own default writes warnings to stderr
        try:
            import lancedb
            import pyarrow as pa
        except ImportError:
            raise MissingExtraError("lancedb", "rag") from None
        self._folder = folder
        self._schema = pa.schema(
            [
                pa.field("id", pa.string(), nullable=False),
                pa.field("text", pa.string(), nullable=False),
                pa.field("metadata", pa.string(), nullable=False),
                pa.field("tags", pa.list_(pa.string()), nullable=False),
                pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
                pa.field("block_key", pa.string(), nullable=False),
                pa.field("fingerprint", pa.string(), nullable=False),
                pa.field("vector", pa.list_(pa.float32(), dim), nullable=False),
            ]
        )
        self._dim = dim
        with self._errors("open"):
            # interval 0: every read looks for what others wrote
            database = lancedb.connect(folder, read_consistency_interval=timedelta(0))
            self._table: Any = database.create_table(_TABLE, schema=self._schema, exist_ok=True)

    def __len__(self) -> int:
        with self._errors("read"):
            return int(self._table.count_rows())

    def get(self, ids: Sequence[str]) -> dict[str, Row]:
        rows: dict[str, Row] = {}
        with self._errors("read"):
            for filtered in _filters("id", ids):
                query = self._table.search().where(filtered).limit(_IDS_AT_ONCE).select([*_COLUMNS, "vector"])
                rows |= {found["id"]: _row(found) for found in query.to_list()}
        return rows

    def upsert(self, rows: Sequence[Row]) -> None:
        if not rows:
            return
        with self._errors("write"):
            merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            merge.execute(self._to_arrow(rows))
            if self._table.stats()["fragment_stats"]["num_small_fragments"] > _MANY_FRAGMENTS:
                self._table.optimize()

    def delete(self, ids: Sequence[str]) -> int:
        with self._errors("write"):
            return sum(int(self._table.delete(filtered).num_deleted_rows) for filtered in _filters("id", ids))

    def search(self, vector: Vector, top_k: int, tags: Sequence[str]) -> list[tuple[Row, float]]:
        with self._errors("read"):
            query = self._table.search(vector).distance_type("dot").limit(top_k).select([*_COLUMNS, "_distance"])
            if tags:
                query = query.where(" AND ".join(f"array_has(tags, {_quoted(tag)})" for tag in tags), prefilter=True)
            found = [(_row(one), 1.0 - one["_distance"]) for one in query.to_list()]  # its distance is 1 - dot
        return sorted(found, key=lambda pair: (-pair[1], pair[0].id))

    def referenced(self, block_keys: Sequence[str]) -> set[str]:
        found: set[str] = set()
        with self._errors("read"):
            for filtered in _filters("block_key", block_keys):
                rows = self._table.search().where(filtered).limit(max(1, len(self))).select(["block_key"]).to_list()
                found |= {row["block_key"] for row in rows}
        return found

    def close(self) -> None:
        self._table = None

    def _to_arrow(self, rows: Sequence[Row]) -> Any:
        import pyarrow as pa

        vectors = np.stack([row.vector for row in rows if row.vector is not None]).astype(np.float32)
        columns = [pa.array([getattr(row, name) for row in rows], self._schema.field(name).type) for name in _COLUMNS]
        columns.append(pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), self._dim))
        return pa.Table.from_arrays(columns, schema=self._schema)

    @contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        """Whatever LanceDB raises, as one line; it has no base class of its own."""
        if verb != "open" and self._table is None:
            raise StoreError("this knowledge base was closed: open it again")
        try:
            yield
        except (OSError, RuntimeError, ValueError) as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise StoreError(f"cannot {verb} the knowledge base in {self._folder}: {line:.300}") from error


def _row(found: dict[str, Any]) -> Row:
    vector = found.get("vector")
    return Row(
        id=found["id"],
        text=found["text"],
        metadata=found["metadata"],
        tags=tuple(found["tags"]),
        vector=None if vector is None else np.asarray(vector, dtype=np.float32),
        token_ids=tuple(found["token_ids"]),
        block_key=found["block_key"],
        fingerprint=found["fingerprint"],
    )


def _filters(column: str, values: Sequence[str]) -> Iterator[str]:
    for start in range(0, len(values), _IDS_AT_ONCE):
        yield f"{column} IN ({', '.join(map(_quoted, values[start : start + _IDS_AT_ONCE]))})"


def _quoted(text: str) -> str:
    """A literal of LanceDB's SQL: there a doubled quote is the only escape, and nothing else inside has a meaning."""
    return "'" + text.replace("'", "''") + "'"
