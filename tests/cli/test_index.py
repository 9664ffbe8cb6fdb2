from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Result

pytest.importorskip("lancedb")
Run = Callable[..., Result]
QUESTION = "what does the fox do"


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "fox.md").write_text("the quick brown fox jumps over the lazy dog")
    (docs / "plan.txt").write_text("attention sees what the plan shows it")
    return docs


def test_index_then_ask(run: Run, docs: Path) -> None:
    first = run("index", "kb", "docs")
    assert (first.code, first.out) == (0, "")
    assert first.stderr == "2 added, 0 updated, 0 skipped, 0 failed; kb holds 2 documents\n"
    (docs / "fox.md").write_text("the fox sleeps")
    again = run("index", "kb", "docs", "--format", "json")
    assert json.loads(again.out) == {
        "added": 0, "updated": 1, "skipped": 1, "failed": 0, "documents": 2, "failures": []
    }  # fmt: skip
    everything = json.loads(run("ask", "kb", QUESTION, "--max-new-tokens", "6", "--format", "json").out)
    assert {hit["id"] for hit in everything["sources"]} == {"docs/fox.md", "docs/plan.txt"}
    assert everything["reuse"] == "cached"
    streamed = run("ask", "kb", QUESTION, "--max-new-tokens", "6")
    assert streamed.code == 0
    assert streamed.out == everything["text"] + "\n"
    assert "docs/fox.md" in streamed.stderr
    assert "first token" in streamed.stderr
    piped = run("ask", "kb", "--max-new-tokens", "6", "-k", "1", "--reuse", "off", stdin=QUESTION.encode())
    assert "reuse off: 0 of" in piped.stderr
    assert "[1]" in piped.stderr
    assert "[2]" not in piped.stderr


def test_what_cannot_be_indexed_is_listed_and_the_rest_is_there(run: Run, docs: Path) -> None:
    (docs / "long.txt").write_text("word " * 200)
    (docs / "binary.txt").write_bytes(b"\0")
    result = run("index", "kb", "docs", "missing")
    assert result.code == 1
    lines = result.stderr.splitlines()
    assert lines[0].startswith("2 added, 0 updated, 0 skipped, 3 failed")
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "docs/binary.txt",
        "missing",
        "docs/long.txt",
        "Error",
    ]
    assert "--truncate" in lines[3]
    (docs / "binary.txt").unlink()
    cut = run("index", "kb", "docs", "--truncate")
    assert cut.code == 0
    assert cut.stderr.startswith("1 added, 0 updated, 2 skipped, 0 failed")


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["index", "kb", "missing"], 1, "missing: no such file"),
        (["index", "docs", "docs"], 1, "holds no knowledge base"),
        (["ask", "kb", "q"], 1, "gritkit index kb"),
        (["ask", "kb", "-"], 1, "no question"),
        (["ask", "kb", "q", "--reuse", "linked"], 2, "linked"),
        (["ask", "kb", "q", "--top-k", "0"], 2, "--top-k"),
    ],
)
def test_wrong_arguments_are_one_line(run: Run, docs: Path, args: list[str], code: int, says: str) -> None:
    result = run(*args)
    assert result.code == code
    assert says in result.error
    assert result.out == ""
    assert not Path("kb").exists()


def test_another_model_is_refused(run: Run, docs: Path, tmp_path: Path) -> None:
    from tests.models import grit_model

    run("index", "kb", "docs")
    grit_model("qwen2", prompt_format="grit").save_pretrained(tmp_path / "other")
    result = run("ask", "kb", QUESTION, "-m", tmp_path / "other")
    assert result.code == 1
    assert "another model" in result.error
