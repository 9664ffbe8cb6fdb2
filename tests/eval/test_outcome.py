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
        lambda fields: fields.update(examples=5),
        lambda fields: fields.update(seconds=10**400),
        lambda fields: fields.update(settings={"limit": 10**400}),
        lambda fields: fields.update(settings=[1]),
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
    for content in (b"\x80{", b"[" * 200_000):
        path.write_bytes(content)
        with pytest.raises(InputError, match=path.name):
            load(path)


def test_what_stands_under_another_name_is_not_taken(tmp_path: Path) -> None:
    folder = OutcomeFolder(tmp_path)
    path = folder.save(outcome())
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fingerprint": "of another model"}))
    assert folder.find("mteb", "STS", "1", "f", {"limit": 3}) is None


def test_json_of_other_programs_is_passed_over(tmp_path: Path) -> None:
    folder = OutcomeFolder(tmp_path)
    path = folder.save(outcome())
    path.with_name("notes.json").write_text('{"task_name": "STS"}')
    path.with_name("list.json").write_text("[1]")
    assert len(folder.all()) == 1
    path.with_name("cut.json").write_text('{"kind": "mteb"}')
    with pytest.raises(InputError, match=r"cut\.json is not a result"):
        folder.all()


def test_a_long_name_of_many_bytes_is_still_a_file(tmp_path: Path) -> None:
    for task in ("語" * 200, "\ud800", "é" * 99 + "a"):
        path = OutcomeFolder(tmp_path).save(outcome(task=task, model=task.replace("\ud800", "m")))
        assert len(path.name.encode()) < 255


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder of results"):
        OutcomeFolder(tmp_path / "none").all()
