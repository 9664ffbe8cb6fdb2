from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from gritkit import GritModel
from gritkit.errors import InputError
from gritkit_eval.cli import app
from gritkit_eval.outcome import PART, Outcome, OutcomeFolder
from gritkit_eval.report.composition import Report, html
from gritkit_eval.report.composition import text as in_markdown
from gritkit_eval.report.gathered import gather
from tests.models import grit_model, shared_model

pytest.importorskip("mteb")

from gritkit_eval.analysis.instructions import VAGUE, Settings, differences, run, wrong_for
from gritkit_eval.mteb.baselines import from_model
from gritkit_eval.mteb.local import load_tasks
from gritkit_eval.mteb.running import run as run_tasks

WORDS = ("beaver", "otter", "owl", "fox", "hare", "crow", "newt", "toad", "lynx", "deer", "mole", "wren")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """STS, retrieval and reranking of a dozen, and a tiny model."""
    rows: list[dict[str, Any]] = [
        {"sentence1": f"the {a} runs", "sentence2": f"the {b} sleeps", "score": i % 5}
        for i, (a, b) in enumerate(zip(WORDS, WORDS[::-1], strict=True))
    ]
    write(tmp_path / "data/sts/animals/test.jsonl", rows)
    folder = tmp_path / "data/retrieval/animals"
    write(folder / "corpus.jsonl", [{"_id": one, "title": "", "text": f"the {one} sleeps all day"} for one in WORDS])
    write(folder / "queries.jsonl", [{"_id": f"q-{one}", "text": f"who is the {one}?"} for one in WORDS])
    write(folder / "qrels.jsonl", [{"query_id": f"q-{one}", "corpus_id": one, "score": 1} for one in WORDS])
    rows = [{"query": f"the {one}", "positive": [f"{one} it is"], "negative": ["a toad", "a newt"]} for one in WORDS]
    write(tmp_path / "data/reranking/animals/test.jsonl", rows)
    grit_model("llama", prompt_format="grit").save_pretrained(tmp_path / "model")
    return tmp_path


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def settings(folder: Path, **more: Any) -> Settings:
    return Settings(**{"models": (f"tiny={folder / 'model'}",), "data": folder / "data", **more})


def outcome(score: float, examples: list[float] | None) -> Outcome:
    return Outcome(
        kind="mteb", task="t", task_type="STS", version="1", model="m", fingerprint="f", metric="x",
        scores={"x": score}, seconds=1, examples=examples,
    )  # fmt: skip


def test_the_wrong_instruction_is_another_types_where_there_is_one() -> None:
    tasks = [("a", "STS", "A"), ("b", "STS", "B"), ("c", "Retrieval", "C")]
    assert wrong_for("a", "A", tasks) == "C"
    assert wrong_for("a", "A", tasks[:2]) == "B"
    assert wrong_for("a", "A", [("a", "STS", "A"), ("c", "Retrieval", "A"), ("d", "Retrieval", None)]) not in ("A", "")


def test_differences_are_paired_by_example() -> None:
    draw = np.random.default_rng(0)
    none, right = draw.random(50), draw.random(50)
    measured = {"none": outcome(none.mean(), none.tolist()), "right": outcome(right.mean(), right.tolist())}
    scores, examples = differences(measured | {"vague": outcome(0.25, None)})
    assert scores["right - none"] == pytest.approx((right - none).mean())
    assert examples == pytest.approx((right - none).tolist())
    half = 1.96 * (right - none).std() / math.sqrt(50)
    assert scores["right - none low"] == pytest.approx((right - none).mean() - half, abs=0.02)
    assert scores["right - none high"] == pytest.approx((right - none).mean() + half, abs=0.02)
    assert scores["vague - none"] == pytest.approx(0.25 - none.mean())
    assert math.isnan(scores["vague - none low"])
    assert "wrong - none" not in scores


def test_each_condition_is_what_it_says(folder: Path) -> None:
    report = run(settings(folder), OutcomeFolder(folder / "out"))
    found = {one.task_type: one for one in report.outcomes}
    told = {
        kind: {name: one["instruction"] for name, one in made.settings["told"].items()} for kind, made in found.items()
    }
    assert told["STS"]["none"] == {"query": None, "passage": None}
    assert {one["vague"]["query"] for one in told.values()} == {VAGUE}
    right = {kind: one["right"]["query"] for kind, one in told.items()}
    for kind, one in told.items():
        assert one["wrong"]["query"] not in (right[kind], None, VAGUE)
    assert told["Retrieval"]["right"]["passage"] is None
    assert told["Retrieval"]["documents too"] == {"query": right["Retrieval"], "passage": right["Retrieval"]}
    assert "documents too" not in told["STS"]
    assert ("documents too" in told["Reranking"]) == (told["Reranking"]["right"]["passage"] is None)
    retrieval = found["Retrieval"]
    assert retrieval.examples is not None
    assert retrieval.score == pytest.approx(np.mean(retrieval.examples), abs=1e-9)
    assert retrieval.scores["right - none low"] <= retrieval.score <= retrieval.scores["right - none high"]
    assert retrieval.scores["right"] - retrieval.scores["none"] == pytest.approx(retrieval.score, abs=2e-5)
    made = [one.made for one in OutcomeFolder(folder / "out").all() if one.kind in ("mteb", PART)]
    run(settings(folder), OutcomeFolder(folder / "out"))
    assert [one.made for one in OutcomeFolder(folder / "out").all() if one.kind in ("mteb", PART)] == made
    assert len(made) == sum(map(len, told.values()))


def test_wrong_instructions_do_not_compete_in_a_report(folder: Path) -> None:
    """Nor does a limit of theirs take the averages of runs on all data away."""
    outcomes = OutcomeFolder(folder / "out")
    model = GritModel.from_pretrained(folder / "model")
    run_tasks(
        [from_model("tiny", model), from_model("other", shared_model())], load_tasks(folder / "data"), outcomes=outcomes
    )
    report = run(settings(folder, limit=8), outcomes)
    assert "[" not in report.tables().splitlines()[-1]  # three tasks: no interval over tasks
    shown = Report(gather([folder / "out"]))
    assert {one.name for one in shown.gathered.runs} == {"other", "tiny"}
    assert shown.lead.startswith("2 models, 6 tasks (limit=8, seed=0; all data), measured")
    whole = [one for one in shown.groups if one.kind == "mteb" and one.asked == "all data"]
    assert len(whole) == 3
    assert all(math.isfinite(one.average(run)) for one in whole for run in shown.gathered.runs)
    text = in_markdown(shown.chapters())
    page = html("x", shown.lead, shown.chapters())
    assert all("limit=8, seed=0" in one for one in (text, page))


def test_a_format_without_a_place_for_it_is_refused(folder: Path) -> None:
    grit_model("llama", prompt_format="e5").save_pretrained(folder / "e5")
    with pytest.raises(InputError, match="e5: its prompt format 'e5' has no place"):
        run(settings(folder, models=(str(folder / "e5"),)), OutcomeFolder(folder / "out"))


def test_the_command_writes_tables_a_section_and_a_plot(folder: Path) -> None:
    words = [
        "instructions", "-m", f"tiny={folder / 'model'}", "--data", str(folder / "data"), "--limit", "8",
        "--results", str(folder / "R.md"),
    ]  # fmt: skip
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert "| task | type | none | right | wrong | vague | documents too |" in done.output
    assert "| mean | " in done.output
    assert "`gritkit eval instructions --model tiny=model --data data --limit 8`" in (folder / "R.md").read_text()
    assert (folder / "plots/eval-instructions.png").read_bytes()[1:4] == b"PNG"
