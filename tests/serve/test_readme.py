"""What serve/README.md and serve/CLIENTS.md list is what there is: fields, options; and what they show works."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from typer.main import get_command

from gritkit_serve.command import app
from gritkit_serve.schemas.chat import ChatMessage, ChatRequest, JsonSchema
from gritkit_serve.schemas.completions import CompletionRequest
from gritkit_serve.schemas.embeddings import EmbeddingRequest
from gritkit_serve.schemas.rerank import RerankRequest
from gritkit_serve.schemas.sampling import StreamOptions
from tests.models import language_model
from tests.serve.knowledge import kb_serving
from tests.serve.serving import PATIENCE_S

SERVE = Path(__file__).parents[2] / "serve"
README = (SERVE / "README.md").read_text("utf-8")
CLIENTS = (SERVE / "CLIENTS.md").read_text("utf-8")
BODIES: dict[str, type[BaseModel]] = {
    "chat": ChatRequest,
    "message": ChatMessage,
    "completion": CompletionRequest,
    "embedding": EmbeddingRequest,
    "rerank": RerankRequest,
    "stream_options": StreamOptions,
    "json_schema": JsonSchema,
}
"""By the names that the page has for them."""


# -- fields ------------------------------------------------------------------------------------------------------------


def rows(page: str, first: str) -> list[list[str]]:
    """The cells of the table whose first column has this title."""
    lines = iter(page.partition(f"\n| {first} |")[2].splitlines()[2:])
    found = []
    for line in lines:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def fields(beginning: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(body, field, schema) of each whose description begins so."""
    for name, body in BODIES.items():
        for field, schema in body.model_json_schema()["properties"].items():
            if schema.get("description", "").startswith(beginning):
                yield name, field, schema


def test_the_page_names_every_field_that_is_refused_and_the_values_that_are_not() -> None:
    listed = {
        (body, field): [json.loads(value) for value in quoted(taken)]
        for names, bodies, taken in rows(CLIENTS, "refused")
        for body in bodies.split(", ")
        for field in quoted(names)
    }
    refused = {
        (body, field): [value for value in schema["enum"] if value is not None]
        for body, field, schema in fields("Not supported")
    }
    assert len(refused) > 20
    assert listed == refused


def test_the_page_names_every_field_that_has_no_effect() -> None:
    listed = {
        (body, field)
        for names, bodies in rows(CLIENTS, "taken")
        for body in bodies.split(", ")
        for field in quoted(names)
    }
    without_effect = {(body, field) for body, field, _ in fields("Accepted; has no effect")}
    assert len(without_effect) > 20
    assert listed == without_effect


# -- options -----------------------------------------------------------------------------------------------------------


def test_the_page_has_every_option_as_the_help_has_it() -> None:
    command: Any = get_command(app)
    options = {
        one.opts[0]: [one.help, default_of(one.default)] for one in command.params if one.opts[0].startswith("--")
    }
    assert len(options) > 20
    assert {
        quoted(name)[0]: [text, "".join(quoted(default))] for name, text, default in rows(README, "option")
    } == options


def default_of(value: Any) -> str:
    """As the page writes it: empty for none and for a switch that is off."""
    value = getattr(value, "value", value)
    if value is None or value is False:
        return ""
    return value if isinstance(value, str) else f"{value:g}"


# -- curl --------------------------------------------------------------------------------------------------------------


def shown(page: str) -> list[str]:
    """The curl commands of a page's indented blocks, those of several lines whole."""
    return re.findall(r"^    (curl (?:.*\\\n)*.*)$", page, re.MULTILINE)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_what_the_page_asks_by_curl_is_answered(tmp_path: Path) -> None:
    from tests.rag.test_parsers import pdf

    (tmp_path / "guide.pdf").write_bytes(pdf("Beavers build dams."))
    (tmp_path / "notes.md").write_text("# Tests\n\nRun make test.\n")
    with kb_serving(tmp_path / "kb", adapters={"support": adapter(tmp_path / "support")}) as running:
        said = [curl(command, running.port, tmp_path) for command in shown(README)]
    chatted, made, added, asked, supported = said
    assert json.loads(chatted)["choices"][0]["message"]["content"]
    assert json.loads(made)["name"] == "handbook"
    assert [json.loads(added)[count] for count in ("added", "failed")] == [2, 0]
    assert asked.startswith("event: sources\n")
    assert asked.rstrip().endswith("data: [DONE]")
    assert json.loads(supported)["model"] == "support"


def curl(command: str, port: int, folder: Path) -> str:
    """What a command of the page prints, with the files of a folder; an error of the server is one here."""
    here = command.replace("localhost:8000", f"127.0.0.1:{port}")
    here = here.replace("curl ", "curl --silent --show-error --fail-with-body --noproxy '*' ", 1)
    done = subprocess.run(
        ["sh", "-c", here], capture_output=True, text=True, cwd=folder, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def adapter(folder: Path) -> Path:
    """One of the model that ``kb_serving`` serves."""
    from peft import LoraConfig, get_peft_model

    get_peft_model(language_model("qwen3"), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(str(folder))
    return folder
