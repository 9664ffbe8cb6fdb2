from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from gritkit.errors import InputError
from gritkit_eval.outcome import Outcome, OutcomeFolder, load


def outcome(**given: Any) -> Outcome:
    fields: dict[str, Any] = {
        "kind": "mteb", "task": "STS", "task_type": "STS", "version": "1", "model": "m", "fingerprint": "f",
        "metric": "spearman", "scores": {"spearman": 0.5, "pearson": math.nan}, "seconds": 1.5,
        "examples": [0.25, 0.75], "settings": {"limit": 3},
    }  # fmt: skip
    return Outcome(**fields | given)


def test_what_is_saved_is_found_and_the_same(tmp_path: Path) -> None:
    folder = OutcomeFolder(tmp_path)
    made = outcome()
    path = folder.save(made)
    assert json.loads(path.read_text())["scores"]["pearson"] is None
    found = folder.find("mteb", "STS", "1", "f", {"limit": 3})
    assert found is not None
    assert math.isnan(found.scores["pearson"])
    assert (found.score, found.examples, found.made) == (0.5, [0.25, 0.75], made.made)
    assert len(folder.all()) == 1


@pytest.mark.parametrize(
    "other", [{"task": "STS2"}, {"version": "2"}, {"fingerprint": "g"}, {"settings": {"limit": 4}}, {"kind": "rag"}]
)
def test_anything_else_is_measured_anew(tmp_path: Path, other: dict[str, Any]) -> None:
    folder = OutcomeFolder(tmp_path)
    folder.save(outcome())
    asked = {"kind": "mteb", "task": "STS", "version": "1", "fingerprint": "f", "settings": {"limit": 3}} | other
    assert folder.find(**asked) is None


def test_names_are_no_paths_and_stay_apart(tmp_path: Path) -> None:
    folder = OutcomeFolder(tmp_path / "out")
    paths = {folder.save(outcome(task=task, model="../../m")) for task in ("a/b", "a:b", "..", "ü")}
    assert len(paths) == 4
    assert all(path.resolve().is_relative_to((tmp_path / "out").resolve()) for path in paths)
    assert {one.task for one in folder.all()} == {"a/b", "a:b", "..", "ü"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda fields: fields.pop("fingerprint"),
        lambda fields: fields.update(seconds="1"),
        lambda fields: fields.update(scores={"spearman": "0.5"}),
        lambda fields: fields.update(examples=[True]),
        lambda fields: fields.update(more=1),
        lambda fields: fields.update(format=2),
        lambda fields: fields.update(metric="ndcg"),
    ],
)
def test_a_file_that_is_not_one_is_named(tmp_path: Path, damage: Any) -> None:
    path = OutcomeFolder(tmp_path).save(outcome())
    fields = json.loads(path.read_text())
    damage(fields)
    path.write_text(json.dumps(fields))
    with pytest.raises(InputError, match=f"{path.name}|ndcg"):
        load(path)
    path.write_bytes(b"\x80{")
    with pytest.raises(InputError, match=path.name):
        load(path)


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder of results"):
        OutcomeFolder(tmp_path / "none").all()
