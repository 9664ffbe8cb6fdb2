"""A LanceDB table of chunks: its place, its columns, conditions on them, and its errors.

This module knows nothing about when anything is read or written, and imports no torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np

from gritkit.errors import MissingExtraError, StoreError
from gritkit.rag.store import Listed, Row

COLUMNS = ("id", "document", "number", "count", "text", "metadata", "tags", "digest", "token_ids", "block_key",
           "fingerprint")  # fmt: skip
"""All but the vector."""
LANCE_ERRORS = (OSError, RuntimeError, ValueError)
"""What LanceDB raises; it has no base class of its own."""
_INDEX_CACHE_BYTES = 256 << 20
_METADATA_CACHE_BYTES = 16 << 20
"""LanceDB's own bounds are 6 GiB and 1 GiB. Its cache of metadata takes 50 KiB or more with every version that is
written and lets nothing go before it is full; searches of 20,000 chunks were no slower with a quarter of this."""
_IDS = 65_536  # of a list that are in memory at once
_STRINGS = ("id", "document", "text", "metadata", "digest", "block_key", "fingerprint")
_NUMBERS = ("number", "count")


@contextmanager
def lance_errors(verb: str, where: str) -> Iterator[None]:
    """Whatever LanceDB raises, as one line."""
    try:
        yield
    except LANCE_ERRORS as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StoreError(f"cannot {verb} the knowledge base in {where}: {line:.300}") from error


def is_conflict(error: Exception) -> bool:
    """Whether somebody else was faster: another writer, or a scan that let its tag go while all tags were listed."""
    return re.search("conflict|concurrent|already exists|not found: .*/_refs/tags/", str(error), re.I) is not None


def connect(where: str) -> Any:
    """A folder's or a URI's database. Raises MissingExtraError without the package lancedb."""
    os.environ.setdefault("LANCEDB_LOG", "error")  # its own default writes warnings to stderr
    try:
        import lancedb
    except ImportError:
        raise MissingExtraError("lancedb", "rag") from None
    session = lancedb.Session(
        index_cache_size_bytes=_INDEX_CACHE_BYTES, metadata_cache_size_bytes=_METADATA_CACHE_BYTES
    )
    # interval 0: every read looks for others' writes
    return lancedb.connect(where, read_consistency_interval=timedelta(0), session=session)


def table_names(database: Any) -> list[str]:
    """All of a database's tables."""
    names: list[str] = []
    page = ""
    while True:
        found = database.list_tables(page_token=page or None)
        names += found.tables
        page = found.page_token or ""
        if not page:
            return names


def schema_of(dim: int) -> Any:
    """An Arrow schema for vectors of a length."""
    import pyarrow as pa

    types = {name: pa.string() for name in _STRINGS} | {name: pa.int32() for name in _NUMBERS}
    types |= {"tags": pa.list_(pa.string()), "token_ids": pa.list_(pa.int32())}
    # the key makes two writers of one new document conflict; without it both would insert it
    key = {"id": {"lance-schema:unenforced-primary-key": "true"}}
    fields = [pa.field(name, types[name], nullable=False, metadata=key.get(name)) for name in COLUMNS]
    return pa.schema([*fields, pa.field("vector", pa.list_(pa.float32(), dim), nullable=False)])


def arrow_of(rows: Sequence[Row], dim: int) -> Any:
    """Rows with their vectors as an Arrow table."""
    import pyarrow as pa

    schema = schema_of(dim)
    vectors = np.stack([row.vector for row in rows if row.vector is not None]).astype(np.float32)
    assert vectors.shape == (len(rows), dim), "every row brings a vector of the table's length"
    columns = [pa.array([getattr(row, name) for row in rows], schema.field(name).type) for name in COLUMNS]
    columns.append(pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dim))
    return pa.Table.from_arrays(columns, schema=schema)


def rows_at(table: Any, addresses: Sequence[int]) -> list[Row]:
    """The rows at these places of one version, in their order, vectors included."""
    if not addresses:
        return []
    return [row_of(found) for found in table.take_row_ids(list(addresses)).select([*COLUMNS, "vector"]).to_list()]


def listed(table: Any, condition: str, limit: int) -> list[Listed]:
    """The first so many documents by id among the rows of one version that meet a condition.

    LanceDB has no order by a column, so all of the ids go by, a batch at a time.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    first = None
    for batch in table.search().where(condition).limit(None).select(["document"]).with_row_id(True).to_batches(_IDS):
        some = pa.Table.from_batches([batch])
        both = some if first is None else pa.concat_tables([first, some])
        first = both.take(pc.select_k_unstable(both, limit, [("document", "ascending")]))
    if first is None or not len(first):
        return []
    columns = ["document", "count", "metadata", "tags"]
    found = table.take_row_ids(first["_rowid"].to_pylist()).select(columns).to_list()
    by_id = sorted(found, key=lambda one: str(one["document"]))
    return [Listed(one["document"], one["count"], one["metadata"], tuple(one["tags"])) for one in by_id]


def row_of(found: dict[str, Any]) -> Row:
    """A row as LanceDB gives it."""
    vector = found.get("vector")
    return Row(
        document=found["document"],
        number=found["number"],
        count=found["count"],
        text=found["text"],
        metadata=found["metadata"],
        tags=tuple(found["tags"]),
        digest=found["digest"],
        token_ids=tuple(found["token_ids"]),
        block_key=found["block_key"],
        fingerprint=found["fingerprint"],
        vector=None if vector is None else np.asarray(vector, dtype=np.float32),
    )


def having(tags: Sequence[str]) -> str:
    """The condition that a row has all the tags; empty for none."""
    return " AND ".join(f"array_has(tags, {quoted(tag)})" for tag in tags)


def quoted(text: str) -> str:
    """A literal of LanceDB's SQL: there a doubled quote is the only escape, and nothing else inside has a meaning."""
    return "'" + text.replace("'", "''") + "'"
