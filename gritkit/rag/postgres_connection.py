"""A connection to PostgreSQL: one call at a time, each a transaction; reopened once when the server dropped it.

A call that other writers got in the way of is made again. Whatever goes wrong becomes a StoreError of one line in which
the password does not occur.

This module knows nothing about documents or vectors.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from gritkit.errors import MissingExtraError, StoreError

T = TypeVar("T")
Names = Mapping[str, Sequence[str]]

SCHEMA = "gritkit"
"""Holds a knowledge base: one in each database."""
_ATTEMPTS = 20
_LONGEST_WAIT_S = 1.0


class Run:
    """Executes queries inside one transaction; ``{name}`` in a query stands for an identifier."""

    def __init__(self, connection: Any, names: Names) -> None:
        self._connection = connection
        self._names = dict(names)

    def __call__(self, query: str, parameters: Sequence[Any] = (), names: Names | None = None) -> Any:
        """A cursor with the result."""
        cursor = self._connection.cursor(binary=bool(parameters))  # several statements at once have no binary result
        return cursor.execute(self._sql(query, names), parameters or None)

    def text(self, query: str) -> str:
        """The query with its identifiers quoted."""
        return str(self._sql(query, None).as_string(self._connection))

    def copy(self, query: str, types: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Send rows in PostgreSQL's binary form."""
        with self._connection.cursor() as cursor, cursor.copy(self._sql(query, None)) as copy:
            copy.set_types(types)
            for row in rows:
                copy.write_row(row)

    def _sql(self, query: str, names: Names | None) -> Any:
        from psycopg import sql

        known = {name: sql.Identifier(*parts) for name, parts in (self._names | dict(names or {})).items()}
        return sql.SQL(query).format(**known)


class Connection:
    """A database by its URL. Safe to use from several threads, one after the other.

    Raises:
        MissingExtraError: without the packages psycopg and pgvector. StoreError: for an address that is none, or from
            a call when the database cannot be reached.
    """

    def __init__(self, url: str) -> None:
        for package in ("psycopg", "pgvector"):
            try:
                __import__(package)
            except ImportError:
                raise MissingExtraError(package, "postgres") from None
        from psycopg.conninfo import conninfo_to_dict

        self._address = url
        try:
            parts = conninfo_to_dict(self._address)
        except Exception:  # its message quotes the address, password and all
            raise StoreError(
                "the address of the PostgreSQL server cannot be read: write postgresql://user:password@host/database"
            ) from None
        self._password = str(parts.get("password") or "")
        self._shown = f"{parts.get('host') or 'localhost'}/{parts.get('dbname') or ''}"
        self._lock = threading.RLock()
        self._open: Any = None
        self._closed = False

    def __str__(self) -> str:
        return f"the knowledge base in PostgreSQL {self._shown}"

    def call(self, verb: str, work: Callable[[Run], T], names: Names | None = None) -> T:
        """What ``work`` makes of a transaction, which is committed after it. It may be called again from the start."""
        from psycopg import errors

        overtaken = (errors.UniqueViolation, errors.SerializationFailure, errors.DeadlockDetected)
        reopened = False
        with self._lock, self._errors(verb):
            for attempt in range(_ATTEMPTS):
                connection = self._connected()
                try:
                    with connection.transaction():
                        return work(Run(connection, names or {}))
                except overtaken:
                    if attempt == _ATTEMPTS - 1:
                        raise
                    time.sleep(random.uniform(0, min(_LONGEST_WAIT_S, 0.01 * 2**attempt)))
                except (errors.OperationalError, errors.InterfaceError):
                    if reopened or not connection.closed:
                        raise
                    reopened = True
        raise AssertionError("the last attempt returned or raised")

    def outside(self, verb: str, query: str, names: Names) -> None:
        """A statement that no transaction may hold."""
        with self._lock, self._errors(verb):
            Run(self._connected(), names)(query)

    def stream(self, verb: str, query: str, names: Names, batch_size: int) -> Iterator[tuple[Any, ...]]:
        """The rows of a long result as of one moment, over a connection of its own."""
        with self._errors(verb):
            connection = self._connect()
        try:
            with self._errors(verb):
                connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                cursor = connection.cursor("gritkit_scan", binary=True)
            with cursor:
                with self._errors(verb):
                    cursor.execute(Run(connection, names)._sql(query, None))
                while True:
                    with self._errors(verb):
                        rows = cursor.fetchmany(batch_size)
                    if not rows:
                        return
                    yield from rows
        finally:
            connection.close()

    def close(self) -> None:
        """Let go of the connection."""
        with self._lock:
            self._closed = True
            if self._open is not None:
                self._open.close()

    def _connected(self) -> Any:
        if self._closed:
            raise StoreError("this knowledge base was closed: open it again")
        if self._open is None or self._open.closed:
            self._open = self._connect()
        return self._open

    def _connect(self) -> Any:
        import psycopg
        from pgvector.psycopg import register_vector

        connection = psycopg.connect(self._address, autocommit=True)
        connection.add_notice_handler(lambda _: None)
        try:
            # a race of two IF NOT EXISTS ends in a violated key; who loses it finds the extension there
            with suppress(psycopg.errors.UniqueViolation):
                connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            register_vector(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        from psycopg import Error

        try:
            yield
        except (Error, OSError, UnicodeError) as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            if "extension" in line and "vector" in line:
                line += ": install pgvector on the server, and let a superuser run CREATE EXTENSION vector"
            message = f"cannot {verb} {self}: {line:.300}"
            raise StoreError(message.replace(self._password, "***") if self._password else message) from None
