"""A browser and servers that the tests of the page share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.serve.page.browsing import BEAVERS, Visits, chromium, page_server
from tests.serve.serving import Running

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with page_server(tmp_path_factory.mktemp("bases")) as running:
        yield running


@pytest.fixture
def empty(server: Running) -> Running:
    """The server without any knowledge base."""
    with server.client() as client:
        for base in client.get("/v1/kb").json()["data"]:
            client.delete(f"/v1/kb/{base['name']}").raise_for_status()
    return server


@pytest.fixture
def filled(empty: Running) -> Running:
    """The server with a knowledge base "animals" of three documents."""
    with empty.client() as client:
        client.post("/v1/kb", json={"name": "animals"}).raise_for_status()
        texts = {"beavers.txt": BEAVERS, "otters.txt": "Otters hunt fish.", "bread.txt": "Bread rises by yeast."}
        documents = [{"id": id, "text": text} for id, text in texts.items()]
        client.post("/v1/kb/animals/documents", json={"documents": documents}).raise_for_status()
    return empty


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visits]:
    visits = Visits(browser)
    yield visits
    visits.end()
