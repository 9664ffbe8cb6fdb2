from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from gritkit.errors import InputError, RecordError
from gritkit_eval.analysis.similarity import Settings, load, measure, pair_of, run
from gritkit_eval.analysis.texts import data_files
from gritkit_eval.cli import app
from gritkit_eval.outcome import OutcomeFolder
from tests.models import grit_model

ANIMALS = ("beaver", "otter", "owl", "fox", "hare", "crow", "newt", "toad", "lynx", "deer", "mole", "wren")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        {"query": f"what does the {name} do?", "pos": [f"the {name} sleeps all day and hunts at night near the river"]}
        for name in ANIMALS
    ]
    (tmp_path / "animals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    grit_model("llama", prompt_format="grit").save_pretrained(tmp_path / "model")
    return tmp_path


def settings(folder: Path, **more: Any) -> Settings:
    given = {"models": (f"tiny={folder / 'model'}",), "texts": (folder / "animals.jsonl",), "k": 3, "limit": 24}
    return Settings(**{**given, **more})


@pytest.mark.parametrize(
    ("row", "pair"),
    [
        ({"query": ["i", "q"], "pos": [["j", "p"], "other"]}, ("q", "p")),
        ({"sentence1": "a", "sentence2": "b", "score": 4.0}, ("a", "b")),
        ({"sentence1": "a", "sentence2": "b", "score": 3.9}, None),
        ({"sentence1": "a", "sentence2": "b"}, None),
        ({"premise": "a", "hypothesis": "b", "label": 1}, ("a", "b")),
        ({"premise": "a", "hypothesis": "b", "label": 0}, None),
        ({"query": "a", "pos": []}, None),
        ({"text": "a"}, None),
    ],
)
def test_pairs_of_rows(row: dict[str, Any], pair: tuple[str, str] | None) -> None:
    assert pair_of(row) == pair


def test_figures_hang_together(folder: Path) -> None:
    model = grit_model("llama", prompt_format="grit")
    (file,) = data_files([folder / "animals.jsonl"])
    material = load(file, settings(folder))
    assert sorted(material.texts) != material.texts
    assert len(material.pairs) == 12
    plain = measure(model, material, settings(folder))
    assert (plain["texts"], plain["long texts"]) == (24, 12)
    assert plain["asymmetry"] == pytest.approx(0, abs=1e-5)  # without an instruction both roles are one in this format
    assert plain["own cosine"] == pytest.approx(1, abs=1e-5)
    assert plain["triangles of angle"] == 0
    assert plain["triangles of 1 - cosine"] > 0
    assert plain["cosine cut to 75%"] > plain["cosine cut to 25%"]
    told = measure(model, material, settings(folder, instruction="Find what the animal does"))
    assert told["asymmetry"] > 1e-4
    assert told["own cosine"] < 0.9999
    assert told["isotropy"] == pytest.approx(plain["isotropy"])
    pairs = [(model.embed(a, role="query"), model.embed(b)) for a, b in material.pairs]
    assert plain["alignment"] == pytest.approx(np.mean([((a - b) ** 2).sum() for a, b in pairs]), abs=1e-4)


def test_resumed_and_without_pairs(folder: Path) -> None:
    outcomes = OutcomeFolder(folder / "out")
    first = run(settings(folder), outcomes).outcomes[0]
    assert run(settings(folder), outcomes).outcomes[0].made == first.made
    assert run(settings(folder, seed=1), outcomes).outcomes[0].settings["seed"] == 1
    (folder / "bare.jsonl").write_text("".join(json.dumps({"text": f"about the {name}"}) + "\n" for name in ANIMALS))
    (bare,) = run(settings(folder, texts=(folder / "bare.jsonl",)), outcomes).outcomes
    assert math.isnan(bare.scores["alignment"])
    assert bare.scores["long texts"] == 0
    assert "cosine cut to 25%" not in bare.scores


def test_wrong_data_and_too_few_texts_are_named(folder: Path) -> None:
    with (folder / "animals.jsonl").open("a") as file:
        file.write('{"query": "x", "pos": [7]}\n')
    with pytest.raises(RecordError, match=r"animals:13: pos\[0\]"):
        run(settings(folder, models=("absent",)), OutcomeFolder(folder / "out"))
    (folder / "few.jsonl").write_text('{"text": "a b"}\n' * 9)
    with pytest.raises(InputError, match="1 different texts and 4 are needed"):
        run(settings(folder, texts=(folder / "few.jsonl",)), OutcomeFolder(folder / "out"))
    with pytest.raises(InputError, match="two models are called 'tiny'"):
        run(settings(folder, models=("tiny=a", "tiny=b")), OutcomeFolder(folder / "out"))


def test_the_command_writes_tables_a_section_and_a_plot(folder: Path) -> None:
    words = [
        "similarity", "--texts", str(folder / "animals.jsonl"), "-m", f"tiny={folder / 'model'}", "--k", "3",
        "-m", f"twin={folder / 'model'}", "--output", str(folder / "out"), "--results", str(folder / "R.md"),
    ]  # fmt: skip
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert "| figure | tiny | twin |" in done.output
    assert "## eval similarity" in (folder / "R.md").read_text(encoding="utf-8")
    assert (folder / "plots/eval-similarity.png").read_bytes()[1:4] == b"PNG"
    done = CliRunner().invoke(app, [*words[:-2], "--format", "json"], catch_exceptions=False)
    assert json.loads(done.stdout)[0]["scores"]["triangles of angle"] == 0
