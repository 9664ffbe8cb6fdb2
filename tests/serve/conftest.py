"""Servers that tests share. ``server`` has a tiny model; a test that changes a server makes its own by ``serving``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from tests.models import grit_model
from tests.serve.serving import Running, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """A server with a Qwen3 of three layers in the GRIT format; without an API key."""
    with serving(grit_model("qwen3", prompt_format="grit")) as running:
        yield running


@pytest.fixture(scope="module")
def loading() -> Iterator[Running]:
    """A server whose model is not there yet."""
    with serving(None) as running:
        yield running
