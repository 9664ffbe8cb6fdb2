"""Where a knowledge base is: a local folder, object storage, or a PostgreSQL server; and what differs between them.

    folder      gritkit_kb.json (manifest)   documents_N.lance (rows)   blocks/ (key-values)   .lock
    objects     the manifest is a LanceDB table of one row; blocks and lock are on the local disk
    postgres    the manifest is a table of one row; blocks and lock are on the local disk, and the server has a lock too

Key-values are always read from a local disk, so for the places that are not on one they live in gritkit's own folder,
under a digest of the address.

This module knows nothing about what is stored.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlencode, urlsplit

from gritkit.errors import MissingExtraError, StoreError
from gritkit.files import home, resolve, write_atomic
from gritkit.rag.lock import FileLock, InUseError
from gritkit.rag.manifest import FILE_NAME, Manifest
from gritkit.rag.store import DocumentStore

_OBJECT_SCHEMES = ("s3", "s3+ddb", "gs", "az", "abfss", "file-object-store")
_POSTGRES_SCHEMES = ("postgresql", "postgres")
_CREATE_WAIT_S = 10.0
_PG_LOCK = 0x67726974_6B69742E
"""Names our advisory lock among a database's others."""


class Place(Protocol):
    """One knowledge base's whereabouts. Methods raise StoreError when the disk, the network or the server fails."""

    name: str
    """For messages: the address without a password."""
    blocks: Path
    """Folder of the key-values."""

    def read(self) -> Manifest | None:
        """The manifest; None where there is no knowledge base."""

    def create(self, manifest: Manifest) -> Manifest:
        """Write the first manifest; returns the stored one, which is another's where somebody was faster."""

    def replace(self, manifest: Manifest) -> None:
        """Put another manifest in the stored one's place, at once."""

    def store(self, manifest: Manifest) -> DocumentStore: ...

    def generations(self) -> list[int]:
        """The tables of documents that are there, oldest first."""

    def drop_generation(self, generation: int) -> None: ...

    def num_bytes(self) -> int:
        """Everything that the knowledge base takes up, but for its blocks."""

    def writing(self, *, alone: bool, wait_s: float) -> contextlib.AbstractContextManager[None]:
        """The right to change it, alone or beside other writers."""


def place_of(where: str | os.PathLike[str]) -> Place:
    """Raises StoreError for an address that no knowledge base can have, InputError for an unusable path."""
    address = os.fspath(where)
    scheme = address.partition("://")[0] if "://" in address else ""
    if scheme in _POSTGRES_SCHEMES:
        return PostgresPlace(address)
    if scheme in _OBJECT_SCHEMES:
        return ObjectPlace(address)
    if scheme:
        known = ", ".join((*_OBJECT_SCHEMES[:-1], _POSTGRES_SCHEMES[0]))
        raise StoreError(f"{scheme[:20]}:// is no place for a knowledge base: give a local folder, or one of {known}")
    return FolderPlace(resolve(address))


class FolderPlace:
    """A folder on a local disk."""

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self.folder = folder
        self.blocks = folder / "blocks"
        self._lock = FileLock(folder / ".lock", self.name)

    def read(self) -> Manifest | None:
        try:
            return Manifest.from_json((self.folder / FILE_NAME).read_bytes(), self.name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StoreError(f"cannot open the knowledge base {self.name}: {error.strerror or error}") from error

    def create(self, manifest: Manifest) -> Manifest:
        stored = self.read()
        if stored is None and not self._empty():
            stored = self.read()  # somebody may have made it between these lines
            if stored is None:
                self.check_empty()
        if stored is None:
            with self.writing(alone=True, wait_s=_CREATE_WAIT_S):
                stored = self.read()
                if stored is None:
                    self.replace(manifest)
        return stored or manifest

    def check_empty(self) -> None:
        """Raises StoreError for a folder that holds something. Hidden files do not count."""
        if not self._empty():
            raise StoreError(f"{self.name} is not empty and holds no knowledge base: name a new or an empty folder")

    def replace(self, manifest: Manifest) -> None:
        try:
            write_atomic(self.folder / FILE_NAME, manifest.to_json().encode())
        except OSError as error:
            raise StoreError(f"cannot write to {self.name}: {error.strerror or error}") from error

    def _empty(self) -> bool:
        try:
            return not self.folder.exists() or all(entry.name.startswith(".") for entry in self.folder.iterdir())
        except OSError as error:
            raise StoreError(f"cannot open the knowledge base {self.name}: {error.strerror or error}") from error

    def store(self, manifest: Manifest) -> DocumentStore:
        from gritkit.rag.lance import LanceStore

        return LanceStore(self.folder, manifest.dim, generation=manifest.generation)

    def generations(self) -> list[int]:
        from gritkit.rag.lance import LanceStore

        return LanceStore.generations(self.folder) if self.folder.is_dir() else []

    def drop_generation(self, generation: int) -> None:
        from gritkit.rag.lance import LanceStore

        LanceStore.drop_generation(self.folder, generation)

    def num_bytes(self) -> int:
        return sum(
            _size(folder, names) for folder, _, names in os.walk(self.folder) if not _within(folder, self.blocks)
        )

    def writing(self, *, alone: bool, wait_s: float) -> contextlib.AbstractContextManager[None]:
        return self._lock.hold(alone=alone, wait_s=wait_s)


class ObjectPlace:
    """A database of LanceDB on object storage. Writers on other machines are not held back by its lock."""

    _TABLE = "gritkit_kb"

    def __init__(self, uri: str) -> None:
        self.name = _shown(uri)
        self.blocks = _local_folder(self.name)
        self._uri = uri
        self._lock = FileLock(self.blocks / ".lock", self.name)

    def read(self) -> Manifest | None:
        with self._errors("open"):
            try:
                table = self._connect().open_table(self._TABLE)
            except ValueError as error:
                if "not found" not in str(error):
                    raise
                return None  # or left half made by somebody who was killed
            text = table.to_arrow()["manifest"][0].as_py()
        return Manifest.from_json(text, self.name)

    def create(self, manifest: Manifest) -> Manifest:
        stored = self.read()
        if stored is not None:
            return stored
        with self._errors("open"):
            database = self._connect()
            names = database.list_tables().tables
            if any(name != self._TABLE and not name.startswith("documents_") for name in names):
                raise StoreError(f"{self.name} holds other tables and no knowledge base: name an empty place")
            with contextlib.suppress(ValueError):  # somebody was faster
                database.create_table(self._TABLE, [{"manifest": manifest.to_json()}])
        stored = self.read()
        if stored is None:
            raise StoreError(f"cannot open the knowledge base {self.name}: its manifest was not written")
        return stored

    def replace(self, manifest: Manifest) -> None:
        with self._errors("write to"):
            table = self._connect().open_table(self._TABLE)
            table.add([{"manifest": manifest.to_json()}], mode="overwrite")

    def store(self, manifest: Manifest) -> DocumentStore:
        from gritkit.rag.lance import LanceStore

        return LanceStore(self._uri, manifest.dim, generation=manifest.generation)

    def generations(self) -> list[int]:
        from gritkit.rag.lance import LanceStore

        return LanceStore.generations(self._uri)

    def drop_generation(self, generation: int) -> None:
        from gritkit.rag.lance import LanceStore

        LanceStore.drop_generation(self._uri, generation)

    def num_bytes(self) -> int:
        with self._errors("read"):
            database = self._connect()
            names = database.list_tables().tables
            return sum(int(database.open_table(name).stats()["total_bytes"]) for name in names)

    def writing(self, *, alone: bool, wait_s: float) -> contextlib.AbstractContextManager[None]:
        return self._lock.hold(alone=alone, wait_s=wait_s)

    def _connect(self) -> Any:
        try:
            import lancedb
        except ImportError:
            raise MissingExtraError("lancedb", "rag") from None
        return lancedb.connect(self._uri)

    @contextlib.contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, ValueError) as error:  # LanceDB has no base class of its own
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise StoreError(f"cannot {verb} the knowledge base {self.name}: {line:.300}") from error


class PostgresPlace:
    """The schema ``gritkit`` of a PostgreSQL database."""

    def __init__(self, url: str) -> None:
        self.name = _shown(url)
        self.blocks = _local_folder(self.name)
        self._url = url
        self._lock = FileLock(self.blocks / ".lock", self.name)

    def read(self) -> Manifest | None:
        with self._connected("open") as connection:
            if connection.execute("SELECT to_regclass('gritkit.manifest')").fetchone()[0] is None:
                return None
            found = connection.execute("SELECT manifest FROM gritkit.manifest").fetchone()
        return None if found is None else Manifest.from_json(found[0], self.name)

    def create(self, manifest: Manifest) -> Manifest:
        with self._connected("open") as connection:
            connection.execute(f"SELECT pg_advisory_lock({_PG_LOCK + 1})")  # IF NOT EXISTS can race
            connection.execute("CREATE SCHEMA IF NOT EXISTS gritkit")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS gritkit.manifest (one boolean PRIMARY KEY CHECK (one), manifest text)"
            )
            connection.execute(
                "INSERT INTO gritkit.manifest VALUES (true, %s) ON CONFLICT DO NOTHING", [manifest.to_json()]
            )
        stored = self.read()
        if stored is None:
            raise StoreError(f"cannot open the knowledge base {self.name}: its manifest was not written")
        return stored

    def replace(self, manifest: Manifest) -> None:
        with self._connected("write to") as connection:
            connection.execute("UPDATE gritkit.manifest SET manifest = %s", [manifest.to_json()])

    def store(self, manifest: Manifest) -> DocumentStore:
        from gritkit.rag.postgres import PostgresStore

        return PostgresStore(self._url, manifest.dim, generation=manifest.generation)

    def generations(self) -> list[int]:
        from gritkit.rag.postgres import PostgresStore

        return PostgresStore.generations(self._url)

    def drop_generation(self, generation: int) -> None:
        from gritkit.rag.postgres import PostgresStore

        PostgresStore.drop_generation(self._url, generation)

    def num_bytes(self) -> int:
        with self._connected("read") as connection:
            found = connection.execute(
                "SELECT coalesce(sum(pg_total_relation_size(pg_class.oid)), 0) FROM pg_class JOIN pg_namespace "
                "ON relnamespace = pg_namespace.oid WHERE nspname = 'gritkit' AND relkind = 'r'"
            ).fetchone()
        return int(found[0])

    @contextlib.contextmanager
    def writing(self, *, alone: bool, wait_s: float) -> Iterator[None]:
        # the file for the blocks of this machine, the server's lock for the rows, which all machines share
        with self._lock.hold(alone=alone, wait_s=wait_s), self._connected("write to") as connection:
            _take(connection, alone=alone, wait_s=wait_s, what=self.name)
            try:
                yield
            finally:  # a closed connection's locks are released a moment later
                connection.execute("SELECT pg_advisory_unlock_all()")

    @contextlib.contextmanager
    def _connected(self, verb: str) -> Iterator[Any]:
        """A connection of its own: closing it gives back the locks it took."""
        try:
            import psycopg
        except ImportError:
            raise MissingExtraError("psycopg", "postgres") from None
        try:
            connection: Any = psycopg.connect(self._url, autocommit=True)
        except psycopg.Error as error:
            raise _pg_error("open", self.name, error) from None  # the context may name the password
        try:
            yield connection
        except psycopg.Error as error:
            raise _pg_error(verb, self.name, error) from None
        finally:
            connection.close()


def _take(connection: Any, *, alone: bool, wait_s: float, what: str) -> None:
    kind = "" if alone else "_shared"
    end = time.monotonic() + wait_s
    while not connection.execute(f"SELECT pg_try_advisory_lock{kind}({_PG_LOCK})").fetchone()[0]:
        if time.monotonic() >= end:
            holder = connection.execute(
                "SELECT l.pid, coalesce(a.client_addr::text, 'this machine') FROM pg_locks l "
                "LEFT JOIN pg_stat_activity a USING (pid) WHERE locktype = 'advisory' AND granted "
                "AND (classid::bigint << 32 | objid::bigint) = %s",
                [_PG_LOCK],
            ).fetchone()
            who = "another connection" if holder is None else f"connection {holder[0]} from {holder[1]}"
            raise InUseError(
                f"{what} is in use: {who} has held it for more than {wait_s:g} s: wait for it to finish, or stop it, "
                "and try again"
            )
        time.sleep(0.01)


def _pg_error(verb: str, name: str, error: Exception) -> StoreError:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return StoreError(f"cannot {verb} the knowledge base {name}: {line:.300}")


def _shown(address: str) -> str:
    """An address without its password, wherever that stands."""
    try:
        parts = urlsplit(address)
        user, at, host = parts.netloc.rpartition("@")
        query = [(key, value) for key, value in parse_qsl(parts.query) if "password" not in key.lower()]
        asked = f"?{urlencode(query, safe='/')}" if query else ""
        return f"{parts.scheme}://{user.partition(':')[0]}{at}{host}{parts.path}{asked}"
    except ValueError as error:
        raise StoreError(f"not an address of a knowledge base ({error}): {address.partition('://')[0]}://...") from None


def _local_folder(name: str) -> Path:
    return home() / "blocks" / hashlib.blake2b(name.encode(), digest_size=16).hexdigest()


def _size(folder: str, names: list[str]) -> int:
    total = 0
    for name in names:
        with contextlib.suppress(FileNotFoundError):  # a writer compacts meanwhile
            total += os.stat(os.path.join(folder, name)).st_size
    return total


def _within(folder: str, other: Path) -> bool:
    return folder == str(other) or folder.startswith(f"{other}{os.sep}")
