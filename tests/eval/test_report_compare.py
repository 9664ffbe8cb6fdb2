from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from gritkit.errors import InputError
from gritkit_eval.outcome import Outcome
from gritkit_eval.report import comparison
from gritkit_eval.report.compare import Comparison, as_json, compare
from gritkit_eval.report.composition import html, text
from gritkit_eval.report.gathered import Gathered
from tests.outcomes import outcome


def examined(task: str, model: str, examples: list[float], **given: Any) -> Outcome:
    return outcome(task, model, float(np.mean(examples)), examples=examples, **given)


def compared(ones: list[Outcome], others: list[Outcome], **given: Any) -> Comparison:
    first, second = Gathered(ones), Gathered(others)
    return compare((first, first.runs[0]), (second, second.runs[0]), **given)


def test_differences_beyond_chance_are_told_from_others() -> None:
    rng = np.random.default_rng(0)
    base = (rng.random(200) > 0.5).astype(float)
    clear, worse = np.maximum(base, rng.random(200) > 0.5), base * (rng.random(200) > 0.5)
    noise = np.where(rng.random(200) > 0.9, 1 - base, base)
    ones = [examined(task, "a", base.tolist()) for task in ("clear", "worse", "noise")]
    others = [
        examined(task, "b", list(map(float, values)))
        for task, values in (("clear", clear), ("worse", worse), ("noise", noise))
    ]
    made = compared(ones, others)
    assert {pair.label: pair.verdict for pair in made.pairs} == {"clear": "better", "worse": "worse", "noise": ""}
    for pair in made.pairs:
        assert pair.chance is not None
        assert pair.chance.mean == pytest.approx(pair.difference, abs=1e-12)
        assert pair.chance.low <= pair.difference <= pair.chance.high
    assert made.pairs[0].corrected == pytest.approx(3 / 10_001)
    assert comparison.lead(made).endswith("b is better beyond chance in 1 and worse in 1.")
    swapped = compared(others, ones)
    assert [pair.verdict for pair in swapped.pairs] == ["worse", "better", ""]


def test_less_perplexity_is_better() -> None:
    rng = np.random.default_rng(0)
    many = (20 + rng.random(60)).tolist()
    made = compared(
        [examined("p", "a", many, metric="perplexity")],
        [examined("p", "b", [value - 3 for value in many], metric="perplexity")],
    )
    assert made.pairs[0].verdict == "better"


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        ({"version": "1"}, {"version": "2"}, r'version="1" against version="2": measure both alike'),
        ({"settings": {"limit": 5}}, {}, "limit=5 against limit=null"),
        ({"settings": {"seed": 1}}, {"settings": {"seed": 2}}, "seed=1 against seed=2"),
        ({"metric": "acc"}, {"metric": "f1"}, "metric=acc against metric=f1"),
        ({"task": "s"}, {"task": "t"}, "'b' has no result of it|b has no result of it"),
    ],
)
def test_what_is_not_the_same_is_refused_by_name(one: dict[str, Any], other: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=f"nothing of 'a' and 'b' can be compared: .*({why})"):
        compared([outcome(model="a", **one)], [outcome(model="b", **other)])
    made = compared(
        [outcome("both", "a"), outcome(model="a", **one)], [outcome("both", "b"), outcome(model="b", **other)]
    )
    assert [pair.label for pair in made.pairs] == ["both"]
    assert made.refused


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        (None, [0.0, 1.0], "no scored examples"),
        ([0.0, 1.0], [0.5, 0.5, 0.5], "2 examples against 3"),
        ([0.5], [0.5], "1 example"),
        ([math.nan, 0.5], [0.5, 0.5], "examples without a figure"),
        ([0.0, 0.0], [0.5, 0.5], "its examples' mean is not its score"),
    ],
)
def test_without_paired_examples_there_is_no_interval(one: Any, other: Any, why: str) -> None:
    made = compared([outcome(model="a", examples=one)], [outcome(model="b", examples=other)])
    assert (made.pairs[0].chance, made.pairs[0].why_not, made.pairs[0].verdict) == (None, why, "")
    assert f"unknown: {why}" in text(comparison.chapters(made)).replace("\\", "")


def test_settings_that_do_not_choose_data_may_differ() -> None:
    """Two ways of one model: what is compared is the setting."""
    gathered = Gathered([outcome(settings={"limit": 9, "dim": dim}, score=dim / 1000) for dim in (64, 256)])
    made = compare((gathered, gathered.runs[0]), (gathered, gathered.runs[1]))
    assert (made.first, made.second) == ("m · dim=64", "m · dim=256")
    assert made.pairs[0].difference == pytest.approx(0.192)


def test_averages_resample_tasks() -> None:
    ones = [outcome(f"t{i}", "a", i / 20, task_type=f"type {i % 2}") for i in range(12)]
    others = [outcome(f"t{i}", "b", i / 20 + 0.01 * (1 + i % 3), task_type=f"type {i % 2}") for i in range(12)]
    made = compared(ones, others)
    assert [(one.name, one.num_tasks) for one in made.averages] == [
        ("mteb", 12), ("mteb, type 0", 6), ("mteb, type 1", 6),
    ]  # fmt: skip
    every = made.averages[0]
    assert every.second - every.first == pytest.approx(0.02)
    assert every.chance is not None
    assert 0.01 <= every.chance.low < 0.02 < every.chance.high <= 0.03
    few = compared(ones[:3], others[:3])
    assert few.averages[0].chance is None


def test_no_verdict_where_the_correction_leaves_no_room() -> None:
    ones = [examined(f"t{i}", "a", [0.0] * 20) for i in range(30)]
    others = [examined(f"t{i}", "b", [1.0] * 20) for i in range(30)]
    made = compared(ones, others, resamples=100)
    assert {pair.verdict for pair in made.pairs} == {""}
    assert "too few for any p to pass: give at least 600" in html("t", "l", comparison.chapters(made))


def test_as_json_is_all_of_it_without_nan() -> None:
    made = compared(
        [examined("t", "a", [0.0, 0.5, 1.0]), outcome("n", "a", math.nan)],
        [examined("t", "b", [0.0, 0.5, 0.5]), outcome("n", "b"), outcome("o", "b")],
    )
    kept = json.loads(json.dumps(as_json(made), allow_nan=False))
    assert [task["difference"] for task in kept["tasks"]] == [pytest.approx(-1 / 6), None]
    assert kept["not_compared"] == [{"task": "o", "reason": "a has no result of it"}]
    assert kept["averages"][0]["num_tasks"] == 1
