from __future__ import annotations

import math
from pathlib import Path

import pytest

from gritkit.errors import InputError
from gritkit_eval.outcome import OutcomeFolder
from gritkit_eval.report.gathered import Gathered, Run, gather, measure_of, only_run, rises
from tests.outcomes import outcome


def test_a_model_is_one_run_whatever_its_tasks_are_set_to() -> None:
    made = [
        outcome("STS", settings={"batch": 8}),
        outcome("MMLU", kind="generation", task_type="knowledge", settings={"shots": 5}),
        outcome("GSM8K", kind="generation", task_type="reasoning", settings={"shots": 8}),
    ]
    gathered = Gathered(made)
    assert gathered.runs == [Run("m")]
    assert gathered.outcomes == made


def test_settings_that_differ_on_one_task_name_the_runs() -> None:
    made = [outcome(score=dim / 1000, settings={"dim": dim, "precision": "int8"}) for dim in (64, 256)]
    gathered = Gathered([*made, outcome("other", settings={"dim": 64, "precision": "int8"}), outcome(model="plain")])
    assert [run.name for run in gathered.runs] == ["m · dim=64", "m · dim=256", "plain"]
    assert gathered.score(measure_of(made[1]), Run("m", "dim=256")) == 0.256
    assert math.isnan(gathered.score(measure_of(made[1]), Run("nobody")))
    nothing = Gathered([outcome(settings={"dim": None}), outcome(settings={"dim": 64}), outcome(made="2026-03-01")])
    assert [run.name for run in nothing.runs] == ["m", "m · dim=64"]
    assert len(nothing.older) == 1
    kinds = Gathered([outcome(settings={"x": "1"}), outcome(settings={"x": 1}), outcome(settings={"x": "one"})])
    assert [run.name for run in kinds.runs] == ["m · x=1", 'm · x="1"', "m · x=one"]


def test_forms_of_a_model_are_runs() -> None:
    """As gritkit eval efficiency writes them: the form is the task."""
    made = [
        outcome(f"{dim} dimensions", kind="efficiency", task_type="efficiency", settings={"name": str(dim), "limit": 5})
        for dim in (256, 64)
    ]
    speed = outcome("throughput", kind="efficiency", task_type="throughput", metric="texts/s")
    gathered = Gathered([*made, speed])
    assert [run.name for run in gathered.runs] == ["m", "m · 64 dimensions", "m · 256 dimensions"]
    assert [(one.task, one.task_type) for one in gathered.measures] == [
        ("efficiency", "efficiency"), ("throughput", "throughput"),
    ]  # fmt: skip
    twice = [*made, outcome("64 dimensions", kind="efficiency", task_type="efficiency", settings={"name": "x"})]
    assert len(Gathered(twice).outcomes) == 3


def test_figures_of_different_data_are_different_measures() -> None:
    gathered = Gathered(
        [
            outcome(settings={"limit": 10, "seed": 0}), outcome(settings={"limit": None}), outcome(version="2"),
            outcome("other", settings={"limit": 10}),
        ]
    )  # fmt: skip
    assert gathered.runs == [Run("m")]
    assert [gathered.label(one) for one in gathered.measures] == [
        "STS (version 1, limit=10, seed=0)", "STS (version 1, all data)", "STS (version 2, all data)", "other",
    ]  # fmt: skip


def test_two_models_of_one_name_are_told_apart() -> None:
    gathered = Gathered([outcome(fingerprint="aaaaaaaaaaa1"), outcome(fingerprint="aaaaaaaaaaa2")])
    assert [run.name for run in gathered.runs] == ["m (aaaaaaaaaaa1)", "m (aaaaaaaaaaa2)"]
    gathered = Gathered([outcome(fingerprint="a" * 64), outcome(fingerprint="b" * 64)])
    assert [run.name for run in gathered.runs] == ["m (aaaaaaaa)", "m (bbbbbbbb)"]


def test_the_latest_stands(tmp_path: Path) -> None:
    for folder, day, score in (("a", 3, 0.3), ("b", 5, 0.5), ("c", 4, 0.4)):
        OutcomeFolder(tmp_path / folder).save(outcome(score=score, made=f"2026-01-0{day}"))
    gathered = gather([tmp_path / "a", tmp_path / "b", tmp_path / "c", tmp_path / "a"])
    assert [one.score for one in gathered.outcomes] == [0.5]
    assert sorted(one.score for one in gathered.older) == [0.3, 0.4]


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder of results"):
        gather([tmp_path / "none"])
    with pytest.raises(InputError, match=r"no results in .*: run an evaluation with --output"):
        gather([tmp_path])
    OutcomeFolder(tmp_path).save(outcome())
    path = OutcomeFolder(tmp_path).save(outcome("other", "m2"))
    with pytest.raises(InputError, match=r"holds several runs: give --folder .* and two names of 'm', 'm2'"):
        only_run(tmp_path)
    with pytest.raises(InputError, match="no results of 'x': there are 'm', 'm2'"):
        gather([tmp_path]).run("x")
    path.write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=path.name):
        gather([tmp_path])


@pytest.mark.parametrize("metric", ["word_perplexity", "bits_per_byte", "kl", "ttft_s", "Loss", "error rate"])
def test_less_of_it_is_better(metric: str) -> None:
    assert not rises(metric)


@pytest.mark.parametrize("metric", ["ndcg_at_10", "acc", "f1", "spearman", "exact_match", "timely"])
def test_more_of_it_is_better(metric: str) -> None:
    assert rises(metric)
