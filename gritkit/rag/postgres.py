"""The server store: one PostgreSQL table with pgvector and full-text search, for many readers and writers.

A write is one transaction. Two writers of one document are put in an order by the table's key: the second is refused,
and tries again on what the first left. Searches are exact up to a size, and by an HNSW index of measured recall above
it. The words of a chunk are those of PostgreSQL's ``simple`` parser, scored by BM25 (see ``postgres_words``).

This module knows nothing about models or key-values, and imports no torch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np

from gritkit.errors import InputError, StoreError
from gritkit.rag import postgres_words
from gritkit.rag.postgres_connection import SCHEMA, Connection, Names, Run
from gritkit.rag.ranking import TOP_K, exact, ranked, sample_queries, tuned
from gritkit.rag.store import Head, Listed, Row, Size, Vector

T = TypeVar("T")

_COLUMNS = ("document", "number", "count", "text", "metadata", "tags", "digest", "token_ids", "block_key",
            "fingerprint", "vector")  # fmt: skip
_TYPES = ("text", "int4", "int4", "text", "text", "text[]", "text", "int4[]", "text", "text", "vector")
_EXACT_BYTES = 16 << 20  # a server reads its pages one by one: from here on an index is the faster way
_DIM_OF_VECTOR = 2000  # pgvector's HNSW takes so many numbers in single precision,
_DIM_OF_HALFVEC = 4000  # so many in half precision, and no more: longer vectors are searched exactly
_EF_OF_BUILDING = 200  # pgvector's own 64 is built in half the time and needs twice the ef_search
_LADDER = (40, 80, 160, 320, 640, 1000)  # of ef_search
_QUERIES = 128
_MOST_MEMORY = 1 << 30  # for building an index

_TABLE_SQL = """
CREATE TABLE IF NOT EXISTS {table} (
    document text COLLATE "C", number int4, count int4 NOT NULL, text text NOT NULL, metadata text NOT NULL,
    tags text[] NOT NULL, digest text NOT NULL, token_ids int4[] NOT NULL, block_key text NOT NULL,
    fingerprint text NOT NULL, vector vector({dim}) NOT NULL,
    words tsvector GENERATED ALWAYS AS (to_tsvector('simple', left(text, 200000))) STORED,
    PRIMARY KEY (document, number));
CREATE INDEX IF NOT EXISTS {words} ON {table} USING gin (words);
CREATE INDEX IF NOT EXISTS {tags} ON {table} USING gin (tags);
CREATE INDEX IF NOT EXISTS {keys} ON {table} (block_key) WHERE block_key <> ''
"""


@dataclass(frozen=True)
class _Setting:
    """How the vector index is asked, and what was measured. ef 0: it is not asked."""

    ef: int
    recall: float
    rows: int


class PostgresStore:
    """A :class:`gritkit.rag.store.DocumentStore` in a PostgreSQL database with the extension pgvector.

    Args:
        url: ``postgresql://user:password@host/database``; the tables are in its schema ``gritkit``.
        dim: Length of the vectors.
        generation: Which of the tables there; re-indexing fills the next one beside the one in use.
        exact_bytes: Up to this many bytes of vectors every one of them is looked at; with more, :meth:`optimize` builds
            an index for them.

    Raises:
        MissingExtraError: without the packages psycopg and pgvector. StoreError: for a database that cannot be used.
    """

    def __init__(self, url: str, dim: int, *, generation: int = 0, exact_bytes: int = _EXACT_BYTES) -> None:
        self._dim = dim
        self._exact_bytes = exact_bytes
        self._server = Connection(url)
        self._names = {
            "table": (SCHEMA, f"chunks_{generation}"),
            "hnsw": (SCHEMA, f"chunks_{generation}_hnsw"),
        }
        found = self._call("open", lambda run: self._make(run, f"chunks_{generation}"))
        if found != dim:
            self.close()
            raise StoreError(
                f"{self._server} holds vectors of {found} numbers and the model makes {dim}: "
                "open it with the model that indexed it, or index the documents again"
            )

    @staticmethod
    def generations(url: str) -> list[int]:
        """The tables that exist there, oldest first."""
        server = Connection(url)
        query = "SELECT tablename FROM pg_tables WHERE schemaname = %s AND tablename ~ '^chunks_[0-9]+$'"
        try:
            rows = server.call("read", lambda run: run(query, (SCHEMA,)).fetchall())
        finally:
            server.close()
        return sorted(int(name.removeprefix("chunks_")) for (name,) in rows)

    @staticmethod
    def drop_generation(url: str, generation: int) -> None:
        """Delete a table; one that does not exist is passed over."""
        server = Connection(url)
        try:
            names = {"table": (SCHEMA, f"chunks_{generation}")}
            server.call("write", lambda run: run("DROP TABLE IF EXISTS {table}", names=names))
        finally:
            server.close()

    def size(self) -> Size:
        query = "SELECT count(*) FILTER (WHERE number = 0), count(*) FROM {table}"
        documents, chunks = self._call("read", lambda run: run(query).fetchone())
        return Size(documents=documents, chunks=chunks)

    def heads(self, documents: Sequence[str]) -> dict[str, Head]:
        query = (
            "SELECT document, min(digest), min(metadata), min(fingerprint), array_agg(block_key ORDER BY number) "
            "FROM {table} WHERE document = ANY(%s) GROUP BY document"
        )
        rows = self._call("read", lambda run: run(query, (list(documents),)).fetchall())
        return {row[0]: Head(row[1], row[2], row[3], tuple(row[4])) for row in rows}

    def listed(self, limit: int, after: str | None = None) -> list[Listed]:
        condition = "" if after is None else "AND document > %s"
        query = (
            f"SELECT document, count, metadata, tags FROM {{table}} WHERE number = 0 {condition} "
            "ORDER BY document LIMIT %s"
        )
        parameters = (limit,) if after is None else (after.partition("\0")[0], limit)  # no id here has that character
        rows = self._call("read", lambda run: run(query, parameters).fetchall())
        return [Listed(document, count, metadata, tuple(tags)) for document, count, metadata, tags in rows]

    def get(self, documents: Sequence[str]) -> dict[str, list[Row]]:
        query = f"SELECT {_columns()} FROM {{table}} WHERE document = ANY(%s) ORDER BY document, number"
        found: dict[str, list[Row]] = {}
        for row in self._call("read", lambda run: run(query, (list(documents),)).fetchall()):
            found.setdefault(row[0], []).append(_row(row))
        return found

    def replace(self, rows: Sequence[Row]) -> None:
        if not rows:
            return
        for row in rows:
            if "\0" in row.text or "\0" in row.document:
                raise InputError(
                    f"document {row.document!r:.100} holds the character U+0000, which PostgreSQL cannot: remove it"
                )
        documents = list(dict.fromkeys(row.document for row in rows))
        ordered = sorted(rows, key=lambda row: (row.document, row.number))  # one order for all writers: no deadlocks

        def write(run: Run) -> None:
            run("DELETE FROM {table} WHERE document = ANY(%s)", (documents,))
            run.copy(f"COPY {{table}} ({_columns()}) FROM STDIN (FORMAT BINARY)", _TYPES, map(_fields, ordered))

        self._call("write", write)

    def delete(self, documents: Sequence[str]) -> int:
        query = (
            "WITH gone AS (DELETE FROM {table} WHERE document = ANY(%s) RETURNING document) "
            "SELECT count(DISTINCT document) FROM gone"
        )
        return int(self._call("write", lambda run: run(query, (list(documents),)).fetchone())[0])

    def nearest(self, vector: Vector, top_k: int, tags: Sequence[str] = ()) -> list[tuple[Row, float]]:
        query = np.asarray(vector, dtype=np.float32)

        def search(run: Run) -> list[tuple[Row, float]]:
            setting = self._index_to_ask(run)
            if setting is not None:
                found = self._by_index(run, query, top_k, tags, setting.ef)
                if len(found) == top_k:  # else the scan ended before enough had passed the filter
                    return ranked(found, query, top_k)
            return exact(lambda limit: self._by_scan(run, query, limit, tags), query, top_k)

        return self._call("read", search)

    def matching(self, text: str, top_k: int, tags: Sequence[str] = ()) -> list[tuple[Row, float]]:
        rows = self._call(
            "read",
            lambda run: postgres_words.matching(run, self._names["table"], _columns("c."), text, top_k, list(tags)),
        )
        found = [(replace(_row(row), vector=None), float(row[-1])) for row in rows]
        return sorted(found, key=lambda pair: (-pair[1], pair[0].id))

    def referenced(self, block_keys: Iterable[str]) -> set[str]:
        query = "SELECT DISTINCT block_key FROM {table} WHERE block_key <> '' AND block_key = ANY(%s)"
        return {key for (key,) in self._call("read", lambda run: run(query, (list(block_keys),)).fetchall())}

    def scan(self, batch_size: int = 256) -> Iterator[list[Row]]:
        query = f"SELECT {_columns()} FROM {{table}} ORDER BY document, number"
        batch: list[Row] = []
        for found in self._server.stream("read", query, self._names, batch_size):
            row = _row(found)
            if row.number == 0 and len(batch) >= batch_size:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def optimize(self) -> None:
        self._server.outside("write", "VACUUM (ANALYZE) {table}", self._names)
        rows = self.size().chunks
        if rows * self._dim * 4 <= self._exact_bytes or self._dim > _DIM_OF_HALFVEC:
            return
        old = self._call("read", self._setting)
        if old is not None and old.rows <= rows < 1.25 * old.rows:
            return
        self._call("write", lambda run: self._build(run, rows))
        ef, recall = self._call("read", self._measured)
        comment = json.dumps(asdict(_Setting(ef, round(recall, 4), rows))).replace("{", "{{").replace("}", "}}")
        self._call("write", lambda run: run(f"COMMENT ON INDEX {{hnsw}} IS '{comment}'"))

    def searched_by(self) -> str:
        setting = self._call("read", self._index_to_ask)
        if setting is not None:
            return f"index, ef_search {setting.ef}, measured recall {setting.recall:.3f}"
        return "exact, on the server"

    def close(self) -> None:
        self._server.close()

    # -- vectors ---------------------------------------------------------------------------------------------------

    def _make(self, run: Run, table: str) -> int:
        run("SELECT pg_advisory_xact_lock(hashtext(%s))", (".".join(self._names["table"]),))  # IF NOT EXISTS can race
        if run("SELECT to_regclass(%s)", (run.text("{table}"),)).fetchone()[0] is None:
            run("CREATE SCHEMA IF NOT EXISTS {schema}", names={"schema": (SCHEMA,)})
            indices: Names = {name: (f"{table}_{name}",) for name in ("words", "tags", "keys")}
            run(_TABLE_SQL.replace("{dim}", str(self._dim)), names=indices)
        query = "SELECT atttypmod FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = 'vector'"
        return int(run(query, (run.text("{table}"),)).fetchone()[0])

    def _by_scan(self, run: Run, query: Vector, limit: int, tags: Sequence[str]) -> list[Row]:
        # an index that finds vectors by their order would be taken otherwise; the one for tags still serves
        run("SELECT set_config('enable_indexscan', 'off', true), set_config('enable_seqscan', 'on', true)")
        sql = f"SELECT {_columns()} FROM {{table}} WHERE tags @> %s ORDER BY vector <#> %s LIMIT %s"
        return [_row(found) for found in run(sql, (list(tags), query, limit)).fetchall()]

    def _by_index(self, run: Run, query: Vector, limit: int, tags: Sequence[str], ef: int) -> list[Row]:
        run(
            "SELECT set_config('hnsw.ef_search', %s, true), set_config('hnsw.iterative_scan', 'relaxed_order', true)",
            (str(min(1000, max(ef, limit))),),
        )
        if not tags:  # else the planner knows better, where few rows pass
            run("SELECT set_config('enable_seqscan', 'off', true)")
        where = "WHERE tags @> %s" if tags else ""
        sql = f"SELECT {_columns()} FROM {{table}} {where} ORDER BY {self._expression()} <#> %s{self._cast()} LIMIT %s"
        return [_row(found) for found in run(sql, (*([list(tags)] if tags else []), query, limit)).fetchall()]

    def _expression(self) -> str:
        return "vector" if self._dim <= _DIM_OF_VECTOR else f"(vector::halfvec({self._dim}))"

    def _cast(self) -> str:
        return "" if self._dim <= _DIM_OF_VECTOR else f"::halfvec({self._dim})"

    def _build(self, run: Run, rows: int) -> None:
        memory = min(_MOST_MEMORY, max(64 << 20, 2 * rows * self._dim * 4))
        run("SELECT set_config('maintenance_work_mem', %s, true)", (f"{memory >> 10}kB",))
        kind = "vector_ip_ops" if self._dim <= _DIM_OF_VECTOR else "halfvec_ip_ops"
        name = {"plain": self._names["hnsw"][1:]}
        run(
            f"CREATE INDEX IF NOT EXISTS {{plain}} ON {{table}} USING hnsw ({self._expression()} {kind}) "
            f"WITH (ef_construction = {_EF_OF_BUILDING})",
            names=name,
        )

    def _setting(self, run: Run) -> _Setting | None:
        query = "SELECT obj_description(to_regclass(%s), 'pg_class')"
        comment = run(query, (run.text("{hnsw}"),)).fetchone()[0]
        return _Setting(**json.loads(comment)) if comment else None

    def _index_to_ask(self, run: Run) -> _Setting | None:
        setting = self._setting(run)
        asked = setting is not None and setting.ef > 0 and setting.rows * self._dim * 4 > self._exact_bytes
        return setting if asked else None

    def _measured(self, run: Run) -> tuple[int, float]:
        sampled = run("SELECT vector FROM {table} ORDER BY hashtext(document), number LIMIT %s", (_QUERIES,)).fetchall()
        queries = sample_queries(np.stack([_vector(found) for (found,) in sampled]))

        def scores(rows: list[Row], query: Vector) -> list[float]:
            return [score for _, score in ranked(rows, query, len(rows))]

        start = time.perf_counter()
        true = [scores(self._by_scan(run, query, TOP_K, ()), query) for query in queries]
        scan_s = time.perf_counter() - start
        run("SELECT set_config('enable_indexscan', 'on', true)")
        took: dict[int, float] = {}

        def search(ef: int, query: Vector, top_k: int) -> list[float]:
            begun = time.perf_counter()
            rows = self._by_index(run, query, top_k, (), ef)
            took[ef] = took.get(ef, 0.0) + time.perf_counter() - begun
            return scores(rows, query)

        found, recall = tuned(_LADDER, search, queries, true)
        # one that finds enough only when it looks at nearly all is no faster than to look at all
        faster = found is not None and took[_LADDER[found]] < scan_s
        return _LADDER[found] if found is not None and faster else 0, recall

    def _call(self, verb: str, work: Callable[[Run], T]) -> T:
        return self._server.call(verb, work, self._names)


def _columns(prefix: str = "") -> str:
    return ", ".join(f"{prefix}{name}" for name in _COLUMNS)


def _row(found: Sequence[Any]) -> Row:
    document, number, count, text, metadata, tags, digest, token_ids, block_key, fingerprint, vector = found[:11]
    return Row(
        document=document,
        number=number,
        count=count,
        text=text,
        metadata=metadata,
        tags=tuple(tags),
        digest=digest,
        token_ids=tuple(token_ids),
        block_key=block_key,
        fingerprint=fingerprint,
        vector=_vector(vector),
    )


def _vector(found: Any) -> Vector:
    # pgvector before 0.5 makes arrays itself
    return np.asarray(found.to_numpy() if hasattr(found, "to_numpy") else found, dtype=np.float32)


def _fields(row: Row) -> list[Any]:
    fields = [getattr(row, name) for name in _COLUMNS]
    return [list(field) if isinstance(field, tuple) else field for field in fields]
