"""Servers with knowledge bases, and what their streams say."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx

from gritkit.model import GritModel
from gritkit.rag import Rag
from gritkit_serve.bases import Bases
from gritkit_serve.service import Service
from tests.models import TEXTS, grit_model
from tests.serve.serving import Running, serving

DOCUMENTS = [{"id": f"d{n:02}", "text": f"{text} {n}", "metadata": {"mod": n % 3}} for n, text in enumerate(TEXTS * 4)]


def model() -> GritModel:
    """Equal weights each time: what a server and a library of its own have."""
    return grit_model("qwen3", prompt_format="grit")


@contextlib.contextmanager
def kb_serving(folder: Path, *, of: GritModel | None = None, **options: Any) -> Iterator[Running]:
    """A server of the knowledge bases in a folder; the options are those of ``serving``."""

    def prepare(service: Service) -> None:
        service.bases = Bases(folder, service.engine, settings=service.settings)

    with serving(of or model(), prepare=prepare, **options) as running:
        yield running


def filled(client: httpx.Client, name: str, documents: list[dict[str, Any]] | None = None, **options: Any) -> None:
    """A new knowledge base with documents."""
    assert client.post("/v1/kb", json={"name": name, **options}).status_code == 201
    added = client.post(f"/v1/kb/{name}/documents", json={"documents": documents or DOCUMENTS})
    assert added.json()["failed"] == 0, added.text


def events(lines: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """(name, data) of server-sent events, data parsed; the last one is ("message", "[DONE]")."""
    name = "message"
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            text = line.removeprefix("data: ")
            yield name, text if text == "[DONE]" else json.loads(text)
            name = "message"


def error_of(response: httpx.Response, status: int) -> str:
    """The message of a failure."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return str(error["message"])


@contextlib.contextmanager
def library(folder: Path, name: str) -> Iterator[Rag]:
    """The same knowledge base as the library has it."""
    with Rag.open(folder / name, model()) as rag:
        yield rag
