from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gritkit.model import GritModel
from gritkit.rag import Rag, verdicts
from tests.cli.conftest import Result
from tests.models import TEXTS, grit_model

pytest.importorskip("lancedb")
Run = Callable[..., Result]


@pytest.fixture
def kb(run: Run, tmp_path: Path) -> str:
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    assert run("index", "kb", "texts.jsonl").code == 0
    return "kb"


@pytest.fixture
def questions(tmp_path: Path) -> str:
    rows = [
        {"question": "what does the fox do?", "answer": "jumps"},
        {"query": "what is read?", "answer": ["documents"]},
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return "questions.jsonl"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for verdicts."""
    monkeypatch.setenv("GRITKIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_the_gate_decides_what_auto_does(run: Run, kb: str, questions: str, home: Path, model_folder: Path) -> None:
    before = run("ask", kb, "what is read?", "--max-new-tokens", "2")
    assert "reuse cached (no gate has judged this model)" in before.stderr

    strict = run(
        "kb", "gate", kb, questions, "--kl", "0", "--join", "no-bos", "--link-tokens", "2", "--max-new-tokens", "3"
    )
    assert strict.code == 0
    header, off, cached, linked = (line.split() for line in strict.out.splitlines())
    assert header[0] == "way"
    assert (off[0], off[-1]) == ("off", "-")
    assert (cached[0], cached[-1]) == ("cached", "off")
    assert (linked[:2], linked[-1]) == (["linked", "2"], "off")
    assert "no way is within the tolerance" in strict.stderr
    refused = run("ask", kb, "what is read?", "--max-new-tokens", "2")
    assert "reuse off (the gate allows nothing else: F1 " in refused.stderr

    loose = run("kb", "gate", kb, questions, "--kl", "1e9", "--lost-f1", "1", "--join", "text", "--format", "json")
    found = json.loads(loose.out)
    assert (found["codec"], found["questions"]) == ("int8", 2)
    assert {one["reuse"] for one in found["verdicts"]} == {"cached", "linked"}
    assert all(one["allowed"] and one["join"] == "text" for one in found["verdicts"])
    allowed = run("ask", kb, "what is read?", "--max-new-tokens", "2")
    assert "reuse cached (the gate allows it: F1 " in allowed.stderr
    about = json.loads(run("info", "--format", "json").out)["reuse"]
    assert about[0].startswith("cached (int8, text): on; F1 ")
    model = GritModel.from_pretrained(model_folder)
    assert len(verdicts.load(model.fingerprint)) == len(about)


def test_the_gate_names_what_it_cannot_use(run: Run, kb: str, questions: str, home: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"question": "who?"}\n')
    assert "bad.jsonl:1: the record has no answer" in run("kb", "gate", kb, "bad.jsonl").stderr
    assert "no such file" in run("kb", "gate", kb, "missing.jsonl").error
    assert "there is no knowledge base" in run("kb", "gate", "nowhere", questions).error
    assert "join='all'" in run("kb", "gate", kb, questions, "--join", "all").error
    assert not (home / "gates").exists()


def test_another_model_reads_everything_again(run: Run, kb: str, tmp_path: Path) -> None:
    other = grit_model("llama", prompt_format="grit", max_length=64)
    other.save_pretrained(tmp_path / "other")
    assert "gritkit kb reindex kb" in run("ask", kb, "what is read?", "-m", tmp_path / "other").error.replace(
        str(tmp_path) + "/", ""
    )
    done = run("kb", "reindex", kb, "-m", tmp_path / "other")
    assert (done.code, done.out) == (0, "")
    assert f"{len(TEXTS)} documents ({len(TEXTS)} chunks) of kb were read again" in done.stderr
    assert "indexed with another model" in run("ask", kb, "what is read?").error
    with Rag.open(tmp_path / kb, GritModel.from_pretrained(tmp_path / "other")) as rag:
        assert {hit.text for hit in rag.search("what is read?")} == set(TEXTS)
        answer = rag.ask("what is read?", max_new_tokens=2)
        assert (answer.reuse, answer.recomputed) == ("cached", 0)
