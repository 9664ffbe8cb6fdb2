from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    assert "reuse off (asked for): 0 of" in piped.stderr
    assert "[1]" in piped.stderr
    assert "[2]" not in piped.stderr


def test_what_cannot_be_indexed_is_listed_and_the_rest_is_there(run: Run, docs: Path) -> None:
    (docs / "long.txt").write_text("word " * 400)
    (docs / "binary.txt").write_bytes(b"\0")
    (docs / "huge.txt").write_text("word " * 1000)
    (docs / "__init__.py").write_text("")
    rows = [{"text": "one"}, {"text": "two", "id": ""}, {"body": "none"}, {"text": "odd", "id": "a\nb", "n": 1}]
    (docs / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = run("index", "kb", "docs", "missing", "--max-file-size", "0.004")
    assert result.code == 1
    lines = result.stderr.splitlines()
    assert lines[:2] == ["6 added, 0 updated, 0 skipped, 4 failed; kb holds 6 documents", "1 empty files left out"]
    assert [line.split(": ")[0].strip() for line in lines[2:]] == [
        "docs/binary.txt",
        "docs/huge.txt",
        "docs/rows.jsonl:3",
        "missing",
        "Error",
    ]
    assert "raise --max-file-size" in lines[3]
    assert "4 of 10" in lines[-1]
    (docs / "binary.txt").unlink()
    again = run("index", "kb", "docs", "--format", "json")
    report = json.loads(again.out)
    assert (report["added"], report["skipped"], report["failed"]) == (1, 6, 1)
    assert report["failures"][0].startswith("docs/rows.jsonl:3: has no text")


def test_a_long_document_is_cut_and_its_headings_are_kept(run: Run, docs: Path) -> None:
    (docs / "guide.html").write_text(
        "<title>Guide</title><h1>Use</h1><p>" + "some words. " * 40 + "<h2>Foxes</h2><p>the fox is brown</p>"
    )
    assert run("index", "kb", "docs", "--chunk-tokens", "40", "--chunk-overlap", "4").code == 0
    stats = json.loads(run("kb", "stats", "kb", "--format", "json").out)
    assert (stats["documents"], stats["chunk_tokens"], stats["chunk_overlap"]) == (3, 40, 4)
    assert stats["chunks"] > 6
    answer = run("ask", "kb", "the fox is brown", "-k", "20", "--max-new-tokens", "2", "--format", "json")
    sections = [hit["metadata"].get("section") for hit in json.loads(answer.out)["sources"]]
    assert "Use > Foxes" in sections
    warned = run("index", "kb", "docs", "--chunk-tokens", "50")
    assert "Warning: --chunk-tokens 50 has no effect: this knowledge base was made with 40" in warned.stderr
    assert warned.code == 0


def test_an_interrupted_run_goes_on(run: Run, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gritkit.rag import adding

    for number in range(6):
        (docs / f"{number}.txt").write_text(f"the text of file {number}")
    monkeypatch.setattr(adding, "_DOCUMENTS_AT_ONCE", 2)
    replace = adding.KnowledgeBase.replace
    commits = []

    def interrupted(*args: Any) -> None:
        if len(commits) == 2:
            raise KeyboardInterrupt
        commits.append(args)
        replace(*args)

    monkeypatch.setattr(adding.KnowledgeBase, "replace", interrupted)
    assert run("index", "kb", "docs").code == 130
    monkeypatch.setattr(adding.KnowledgeBase, "replace", replace)
    again = run("index", "kb", "docs")
    assert again.stderr == "4 added, 0 updated, 4 skipped, 0 failed; kb holds 8 documents\n"


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["index", "kb", "missing"], 1, "missing: no such file"),
        (["index", "kb", "empty"], 1, "empty: no file that can be read"),
        (["index", "kb", "docs", "--chunk-tokens", "3"], 1, "--chunk-tokens 3 must be between"),
        (["index", "docs", "docs"], 1, "holds no knowledge base"),
        (["ask", "kb", "q"], 1, "gritkit index kb"),
        (["ask", "kb", "-"], 1, "no question"),
        (["ask", "kb", "q", "--reuse", "magic"], 2, "magic"),
        (["ask", "kb", "q", "--top-k", "0"], 2, "--top-k"),
    ],
)
def test_wrong_arguments_are_one_line(run: Run, docs: Path, args: list[str], code: int, says: str) -> None:
    Path("empty").mkdir()
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
