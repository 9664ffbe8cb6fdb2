"""The embedded store: one LanceDB table in a folder or on object storage.

Writes go through ``merge_insert`` (LanceDB's ``add`` would duplicate ids): one call, one version of the table, whatever
a document had before. Filters run inside LanceDB before the search, so ``top_k`` counts what passes them.

This module knows nothing about models or key-values, and imports no torch.
"""

from __future__ import annotations

import random
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from gritkit.allocator import return_free_memory
from gritkit.errors import StoreError
from gritkit.rag.lance_index import Setting, asked, index_all_but_vectors, index_vectors, read_setting
from gritkit.rag.lance_table import (
    COLUMNS,
    LANCE_ERRORS,
    arrow_of,
    connect,
    having,
    is_conflict,
    lance_errors,
    listed,
    quoted,
    row_of,
    rows_at,
    schema_of,
    table_names,
)
from gritkit.rag.lance_vectors import VectorCache
from gritkit.rag.ranking import exact, ranked
from gritkit.rag.store import Head, Listed, Row, Size, Vector, words_of

T = TypeVar("T")

_EXACT_BYTES = 64 << 20  # vectors up to here: one matrix product takes less time than an index (20,000 x 768)
_MATRIX_BYTES = 512 << 20  # vectors that are held in memory while there is no index to ask
_FEW = 1000  # rows that pass a filter are scored one by one up to here
_VALUES_AT_ONCE = 1000  # a filter is parsed as text
_ATTEMPTS = 20
_LONGEST_WAIT_S = 1.0
_KEPT = timedelta(minutes=10)  # a reader of an older version has this long to finish
_TAKEN = 4096  # rows of a long document are read by as many
_SCAN = "scan-"
_SCAN_KEPT_S = 24 * 3600  # a scan that has not ended by then was killed
_FRAGMENTS = 32
_MOST_FRAGMENTS = 256
_TABLE = re.compile(r"documents_(\d+)")


class LanceStore:
    """A :class:`gritkit.rag.store.DocumentStore`. Several may be open on one place; each sees the others' writes.

    Args:
        where: A folder, or the URI of a place on object storage (``s3://``, ``gs://``, ``az://``).
        dim: Length of the vectors.
        generation: Which of the tables in that place; re-indexing fills the next one beside the one in use.
        exact_bytes: From this many bytes of vectors on, :meth:`optimize` builds an index for them.

    Raises:
        MissingExtraError: without the package lancedb. StoreError: for a place that cannot be opened.
    """

    def __init__(self, where: str | Path, dim: int, *, generation: int = 0, exact_bytes: int = _EXACT_BYTES) -> None:
        self._where = str(where)
        self._dim = dim
        self._exact_bytes = exact_bytes
        self._table: Any = None
        self._plan: tuple[int, Setting | None, bool] | None = None
        with lance_errors("open", self._where):
            self._database = connect(self._where)
            self._table = self._open(f"documents_{generation}")
            found = self._table.schema.field("vector").type.list_size
        if found != dim:
            raise StoreError(
                f"{where} holds vectors of {found} numbers and the model makes {dim}: "
                "open it with the model that indexed it, or index the documents again"
            )
        self._vectors = VectorCache(self._at, dim)

    @staticmethod
    def generations(where: str | Path) -> list[int]:
        """The tables that exist there, oldest first."""
        if "://" not in str(where) and not Path(where).is_dir():
            return []  # to ask would make the folder
        with lance_errors("read", str(where)):
            names = (_TABLE.fullmatch(name) for name in table_names(connect(str(where))))
            return sorted(int(found.group(1)) for found in names if found)

    @staticmethod
    def drop_generation(where: str | Path, generation: int) -> None:
        """Delete a table; one that does not exist is passed over."""
        with lance_errors("write", str(where)):
            connect(str(where)).drop_table(f"documents_{generation}", ignore_missing=True)

    def size(self) -> Size:
        with self._errors("read"):
            chunks = int(self._table.count_rows())
            return Size(documents=int(self._table.count_rows("number = 0")), chunks=chunks)

    def heads(self, documents: Sequence[str]) -> dict[str, Head]:
        columns = ("document", "number", "digest", "metadata", "fingerprint", "block_key")
        chunks: dict[str, list[dict[str, Any]]] = {}
        with self._errors("read"):
            for found in self._where_in("document", documents, columns):
                chunks.setdefault(found["document"], []).append(found)
        heads = {}
        for document, parts in chunks.items():
            parts.sort(key=lambda part: int(part["number"]))
            keys = tuple(part["block_key"] for part in parts)
            heads[document] = Head(parts[0]["digest"], parts[0]["metadata"], parts[0]["fingerprint"], keys)
        return heads

    def listed(self, limit: int, after: str | None = None) -> list[Listed]:
        condition = "number = 0" if after is None else f"number = 0 AND document > {quoted(after)}"
        with self._errors("read"):
            return listed(self._at(int(self._table.version)), condition, limit)

    def get(self, documents: Sequence[str]) -> dict[str, list[Row]]:
        rows: dict[str, list[Row]] = {}
        with self._errors("read"):
            for found in self._where_in("document", documents, (*COLUMNS, "vector")):
                rows.setdefault(found["document"], []).append(row_of(found))
        return {document: sorted(parts, key=lambda row: row.number) for document, parts in rows.items()}

    def replace(self, rows: Sequence[Row]) -> None:
        if not rows:
            return
        data = arrow_of(rows, self._dim)
        mine = f"document IN ({', '.join(quoted(one) for one in dict.fromkeys(row.document for row in rows))})"
        with self._errors("write"):
            merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            merge = merge.when_not_matched_by_source_delete(mine)
            self._committed(lambda: merge.execute(data))
            if self._is_scattered():
                try:
                    self._tidy()
                except LANCE_ERRORS as error:
                    if not is_conflict(error):  # else another writer is at it
                        raise

    def delete(self, documents: Sequence[str]) -> int:
        given = list(dict.fromkeys(documents))
        if not given:
            return 0
        known = len(self.heads(given))
        with self._errors("write"):
            filtered = f"document IN ({', '.join(map(quoted, given))})"
            self._committed(lambda: self._table.delete(filtered))
        return known

    def nearest(self, vector: Vector, top_k: int, tags: Sequence[str] = ()) -> list[tuple[Row, float]]:
        query = np.asarray(vector, dtype=np.float32)
        condition = having(tags)
        with self._errors("read"):
            version, setting, in_memory = self._search_plan()
            if setting is None and in_memory:
                snapshot = self._vectors.at(version)
                addresses = snapshot.nearest(query, top_k, condition)
                return ranked(rows_at(snapshot.table, addresses.tolist()), query, top_k)
            if setting is not None:
                self._vectors.drop()
                if condition:
                    passing = int(self._table.count_rows(condition))
                    setting = setting.among(passing, int(self._table.count_rows())) if passing > _FEW else None
            if setting is None:
                return exact(lambda limit: self._proposed(query, limit, condition, None), query, top_k)
            return ranked(self._proposed(query, top_k, condition, setting), query, top_k)

    def matching(self, text: str, top_k: int, tags: Sequence[str] = ()) -> list[tuple[Row, float]]:
        import lancedb.query

        match: Any = lancedb.query.MatchQuery  # its optional fields look required to a type checker
        words = words_of(text)
        if not words.strip():
            return []
        with self._errors("read"):
            query = self._table.search(match(words, "text")).limit(top_k).select([*COLUMNS, "_score"])
            if tags:
                query = query.where(having(tags), prefilter=True)
            found = [(row_of(one), float(one["_score"])) for one in query.to_list()]
        return sorted(found, key=lambda pair: (-pair[1], pair[0].id))

    def referenced(self, block_keys: Iterable[str]) -> set[str]:
        keys = [key for key in block_keys if key]
        with self._errors("read"):
            return {str(found["block_key"]) for found in self._where_in("block_key", keys, ("block_key",))}

    def scan(self, batch_size: int = 256) -> Iterator[list[Row]]:
        tag = f"{_SCAN}{int(time.time())}-{uuid.uuid4().hex}"
        with self._errors("read"):
            moment = self._database.open_table(self._table.name)
            tagged = self._tagged(moment, tag)
        finished = False
        try:
            with self._errors("read"):
                order = moment.search().select(["document", "number"]).with_row_id(True).to_arrow()
                order = order.sort_by([("document", "ascending"), ("number", "ascending")])
            starts = np.flatnonzero(order["number"].to_numpy() == 0).tolist()
            addresses = order["_rowid"].to_pylist()
            begin = 0
            for end in [*starts[1:], len(addresses)]:
                if end - begin >= batch_size or end == len(addresses) > begin:
                    with self._errors("read"):
                        rows = [
                            row
                            for one in range(begin, end, _TAKEN)
                            for row in rows_at(moment, addresses[one : min(end, one + _TAKEN)])
                        ]
                    # taken in the order of the table's files, whatever order they were asked in
                    yield sorted(rows, key=lambda row: (row.document, row.number))
                    begin = end
            finished = True
        finally:
            if tagged:
                # A scan that nobody finished is ended by the garbage collector, on whichever thread it runs. On
                # LanceDB's own a call into LanceDB would wait for itself, so another one makes it.
                forgetting = threading.Thread(target=_forget, args=(moment, tag))
                forgetting.start()
                if finished:
                    forgetting.join()

    def optimize(self) -> None:
        with self._errors("write"):
            index_all_but_vectors(self._table)
            self._committed(self._tidy)
            if self._bytes() > self._exact_bytes:
                index_vectors(self._table, self._committed, in_memory=self._in_memory(self._bytes()))

    def searched_by(self) -> str:
        with self._errors("read"):
            _, setting, in_memory = self._search_plan()
        if setting is not None:
            return f"index, {setting.probes} lists, measured recall {setting.recall:.3f}"
        return "exact, in memory" if in_memory else "exact, from disk"

    def close(self) -> None:
        self._table = None
        self._vectors.drop()

    # -- LanceDB ---------------------------------------------------------------------------------------------------

    def _open(self, name: str) -> Any:
        def made() -> Any:
            try:
                table = self._database.open_table(name)
            except LANCE_ERRORS:
                # not there, or a folder without a version: somebody is making it, or was killed while doing so
                table = self._database.create_table(name, schema=schema_of(self._dim), exist_ok=True)
            index_all_but_vectors(table)
            return table

        return self._committed(made)

    def _at(self, version: int) -> Any:
        table = self._database.open_table(self._table.name)
        table.checkout(version)
        return table

    def _search_plan(self) -> tuple[int, Setting | None, bool]:
        """The newest version, the index's setting where it is to be asked, and whether the vectors go into memory."""
        version = int(self._table.version)
        if self._plan is None or self._plan[0] != version:
            size = self._bytes()
            setting = read_setting(self._table) if size > self._exact_bytes else None
            usable = setting if setting is not None and setting.probes else None
            self._plan = (version, usable, self._in_memory(size))
        return self._plan

    def _bytes(self) -> int:
        """Of all vectors."""
        return int(self._table.count_rows()) * self._dim * 4

    def _in_memory(self, size: int) -> bool:
        return size <= max(_MATRIX_BYTES, self._exact_bytes)

    def _proposed(self, query: Vector, limit: int, condition: str, setting: Setting | None) -> list[Row]:
        search = self._table.search(query).limit(limit).select([*COLUMNS, "vector", "_distance"])
        if setting is not None:
            search = asked(search, setting.probes, setting.refine)
        else:
            search = search.distance_type("dot").bypass_vector_index()
        if condition:
            search = search.where(condition, prefilter=True)
        return [row_of(found) for found in search.to_list()]

    def _is_scattered(self) -> bool:
        """Whether to compact: it rewrites what is there, so it waits until a quarter more has come."""
        fragments = self._table.stats()["fragment_stats"]
        count, rows = fragments["num_fragments"], self._table.count_rows()
        return bool(count > _MOST_FRAGMENTS or (count > _FRAGMENTS and rows > 1.25 * fragments["lengths"]["max"]))

    def _tidy(self) -> None:
        """Compact, extend the indices, and delete what no reader of the last minutes can need."""
        now = datetime.now()
        tags: dict[str, Any] = self._table.tags.list()
        for tag in [tag for tag in tags if tag.startswith(_SCAN)]:
            if now.timestamp() - float(tag.split("-")[1]) > _SCAN_KEPT_S:
                self._table.tags.delete(tag)
                del tags[tag]
        kept = _KEPT
        if tags:  # LanceDB refuses to clean where it would meet one
            held = {tag["version"] for tag in tags.values()}
            made = [one["timestamp"] for one in self._table.list_versions() if one["version"] in held]
            kept = max([kept, *(now - one.replace(tzinfo=None) + timedelta(minutes=1) for one in made)])
        self._table.optimize(cleanup_older_than=kept)
        return_free_memory()  # what compacting took is several times what writing takes

    def _tagged(self, moment: Any, tag: str) -> bool:
        """Keep a version from being deleted while it is read; a place that cannot be written to is read as it is."""
        version = moment.version
        try:
            moment.tags.create(tag, version)
        except LANCE_ERRORS:
            moment.checkout(version)
            return False
        moment.checkout(version)
        return True

    def _where_in(self, column: str, values: Sequence[str], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        once = list(dict.fromkeys(values))
        for start in range(0, len(once), _VALUES_AT_ONCE):
            filtered = f"{column} IN ({', '.join(map(quoted, once[start : start + _VALUES_AT_ONCE]))})"
            yield from self._table.search().where(filtered).limit(None).select(list(columns)).to_arrow().to_pylist()

    def _committed(self, write: Callable[[], T]) -> T:
        """A write that other writers may have overtaken, tried again on what they left."""
        for attempt in range(_ATTEMPTS):
            try:
                return write()
            except LANCE_ERRORS as error:
                if attempt == _ATTEMPTS - 1 or not is_conflict(error):
                    raise
            time.sleep(random.uniform(0, min(_LONGEST_WAIT_S, 0.01 * 2**attempt)))
        raise AssertionError("the last attempt returned or raised")

    @contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        if self._table is None:
            raise StoreError("this knowledge base was closed: open it again")
        with lance_errors(verb, self._where):
            yield


def _forget(moment: Any, tag: str) -> None:
    """Let a version go that a scan held; one that is not let go now is by :meth:`LanceStore.optimize`."""
    with suppress(*LANCE_ERRORS):
        moment.tags.delete(tag)
