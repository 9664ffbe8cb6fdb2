from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gritkit import GritModel
from gritkit.errors import InputError
from gritkit_eval.cli import app
from gritkit_eval.outcome import OutcomeFolder
from tests.models import grit_model
from tests.outcomes import outcome


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for model in ("a", "b"):
        for task in range(6):
            examples = [float((task + i * len(model)) % 3 > (model == "a")) for i in range(30)]
            score = sum(examples) / 30
            OutcomeFolder(tmp_path / model).save(outcome(f"t{task}", model, score, examples=examples))
    return tmp_path


def run(*words: str) -> tuple[str, str]:
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return done.stdout, done.stderr


def test_a_page_a_text_and_a_summary(folder: Path) -> None:
    words = ["report", str(folder / "a"), str(folder / "b"), "--baseline", "a", "--title", "Mine"]
    shown, said = run(*words, "--html", str(folder / "out" / "page.html"), "--markdown", str(folder / "page.md"))
    assert shown.startswith("## Summary")
    assert "| a (baseline) |" in shown
    assert "page.html" in said
    assert "<title>Mine</title>" in (folder / "out" / "page.html").read_text(encoding="utf-8")
    assert (folder / "page.md").read_text(encoding="utf-8").startswith("# Mine\n")
    listed = json.loads(run(*words, "--format", "json")[0])
    assert listed["runs"] == ["a", "b"]
    (group,) = listed["groups"]
    assert group["average"]["a"] == pytest.approx(sum(task["score"]["a"] for task in group["tasks"]) / 6)
    assert group["ratio"]["a"] == 1.0
    with pytest.raises(InputError, match="out is a folder: name a file in it"):
        run(*words, "--html", str(folder / "out"))
    with pytest.raises(InputError, match="no results of 'x'"):
        run("report", str(folder / "a"), "--baseline", "x")


def test_two_folders_or_two_names_are_compared(folder: Path) -> None:
    by_folder, _ = run("compare", str(folder / "a"), str(folder / "b"), "--html", str(folder / "page.html"))
    by_name, _ = run("compare", "a", "b", "--folder", str(folder / "a"), "--folder", str(folder / "b"))
    assert by_folder == by_name
    assert by_folder.startswith("6 tasks compared.")
    assert "<title>b against a</title>" in (folder / "page.html").read_text(encoding="utf-8")
    listed = json.loads(run("compare", str(folder / "a"), str(folder / "b"), "--format", "json", "--seed", "3")[0])
    assert {task["verdict"] for task in listed["tasks"]} <= {"better", "worse", ""}
    with pytest.raises(InputError, match="no results of 'c'"):
        run("compare", "a", "c", "--folder", str(folder / "a"))


def test_a_card_is_written_for_the_model_that_was_measured(folder: Path) -> None:
    grit_model("llama").save_pretrained(folder / "model")
    (folder / "model" / "README.md").write_text("---\nlicense: mit\n---\nHello.\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"the results are of a \(print-a\), none of the model in"):
        run("report", str(folder / "a"), "--card", str(folder / "model"))
    fingerprint = GritModel.from_pretrained(folder / "model").fingerprint
    OutcomeFolder(folder / "a").save(outcome("t0", "mine", 0.125, fingerprint=fingerprint))
    _, said = run("report", str(folder / "a"), "--card", str(folder / "model"))
    assert "README.md" in said
    written = (folder / "model" / "README.md").read_text(encoding="utf-8")
    assert written.startswith("---\nlicense: mit\nmodel-index:\n")
    assert "Hello.\n\n<!-- gritkit eval -->" in written
    assert "| t0 | 0.1250 |" in written
    assert "| a |" not in written
    assert GritModel.from_pretrained(folder / "model").fingerprint == fingerprint
