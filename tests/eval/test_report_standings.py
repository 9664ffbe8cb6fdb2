from __future__ import annotations

import math

import pytest

from gritkit_eval.report import grids
from gritkit_eval.report.gathered import Gathered, Run
from gritkit_eval.report.notes import left_out, made_of, missing
from gritkit_eval.report.standings import best, groups_of, overall_of, ratio_to
from tests.outcomes import outcome

A, B, C = Run("a"), Run("b"), Run("c")


def three_runs() -> Gathered:
    """a has four tasks of a type, b three of them and one without a figure, c one; two tasks of another type."""
    return Gathered(
        [
            *(outcome(f"t{i}", "a", i / 10) for i in (1, 2, 3, 4)),
            *(outcome(f"t{i}", "b", i / 10 + 0.1) for i in (2, 3, 4)),
            outcome("t1", "b", math.nan),
            outcome("t1", "c", 0.9),
            *(outcome("r1", run, score, task_type="Retrieval") for run, score in (("a", 0.8), ("b", 0.6), ("c", 0.7))),
            outcome("p", "a", 20.0, task_type="Retrieval", metric="perplexity"),
        ]
    )


def test_averages_are_over_the_tasks_that_all_averaged_runs_have() -> None:
    sts, retrieval, perplexity = groups_of(three_runs())
    assert (sts.name, sts.averaged, [one.task for one in sts.common]) == ("STS", (A, B), ["t2", "t3", "t4"])
    assert sts.average(A) == pytest.approx(0.3)
    assert sts.average(B) == pytest.approx(0.4)
    assert math.isnan(sts.average(C))
    assert sts.of_tasks == "3 of 4 tasks"
    assert retrieval.averaged == (A, B, C)
    assert perplexity.name == "Retrieval (lower is better)"
    assert not perplexity.rising


def test_nothing_in_common_is_no_average() -> None:
    (group,) = groups_of(Gathered([outcome("t1", "a"), outcome("t2", "b")]))
    assert group.averaged == (A, B)
    assert group.common == ()
    assert math.isnan(group.average(A))
    (empty,) = groups_of(Gathered([outcome("t1", "a", math.nan)]))
    assert empty.averaged == ()


def test_limits_and_versions_are_averaged_apart() -> None:
    """A run on more examples, or on data that changed, takes nobody's average away."""
    later, few = {"made": "2026-02-01"}, {"settings": {"limit": 10, "seed": 0}}
    gathered = Gathered(
        [
            *(outcome(f"t{i}", "a", 0.2) for i in (1, 2)),
            *(outcome(f"t{i}", "b", 0.4, version="2", **later) for i in (1, 2)),
            *(outcome(f"t{i}", run, 0.6, **few) for i in (1, 2) for run in ("a", "c")),
        ]
    )
    groups = groups_of(gathered)
    assert [(one.name, [run.name for run in one.averaged], len(one.common)) for one in groups] == [
        ("STS (all data, 1 version ago)", ["a"], 2), ("STS (all data)", ["b"], 2),
        ("STS (limit=10, seed=0)", ["a", "c"], 2),
    ]  # fmt: skip
    tables = grids.summaries(groups, "mteb", None)
    assert [[row[0].text for row in table.rows] for table in tables] == [["a"], ["b"], ["a", "c"]]
    assert missing(gathered, groups, str) == []


def test_what_types_come_to() -> None:
    groups = groups_of(three_runs())
    overall = overall_of(groups, "mteb")
    assert overall is not None
    assert overall.num_tasks == 4
    assert overall.by_type(A) == pytest.approx((0.3 + 0.8) / 2)
    assert overall.by_task(B) == pytest.approx((0.3 + 0.4 + 0.5 + 0.6) / 4)
    assert math.isnan(overall.by_type(C))
    assert math.isnan(overall.by_task(C))
    assert overall_of(groups, "rag") is None
    assert overall_of(groups[:1], "mteb") is None


def test_the_best_are_marked() -> None:
    assert best([0.1, math.nan, 0.3], rising=True, kind="mteb") == {2}
    assert best([0.3, 0.3, 0.1], rising=True, kind="mteb") == {0, 1}
    assert best([20.0, 10.0], rising=False, kind="generation") == {1}
    for values, kind in (([0.1], "mteb"), ([0.2, 0.2], "mteb"), ([math.nan, 0.1], "mteb"), ([0.1, 0.2], "overlap")):
        assert best(values, rising=True, kind=kind) == set()
    assert ratio_to(0.3, 0.2) == pytest.approx(1.5)
    assert math.isnan(ratio_to(0.3, 0.0))


def test_the_summary_has_the_best_first_and_ratios() -> None:
    gathered = three_runs()
    (table,) = grids.summaries(groups_of(gathered), "mteb", A)
    assert [(head.text, head.note) for head in table.heads] == [
        ("Run", ""), ("STS", "3 of 4 tasks"), ("Retrieval", "1 task"), ("Retrieval (lower is better)", "1 task"),
        ("Mean", "2 types"), ("Mean", "4 tasks"),
    ]  # fmt: skip
    cells = {row[0].text: [(cell.text, cell.note, cell.best) for cell in row[1:4]] for row in table.rows}
    assert list(cells) == ["a", "b", "c"]
    assert cells["b"] == [("0.4000", "1.333x", True), ("0.6000", "0.750x", False), ("n/a", "", False)]
    assert cells["a"][2] == ("20", "", False)
    assert table.rows[0][0].note == "baseline"


def test_tasks_that_are_not_averaged_say_so() -> None:
    table = grids.detail(groups_of(three_runs())[0], None)
    assert [(row[0].text, row[0].note) for row in table.rows][:2] == [("t1", "not averaged"), ("t2", "")]
    assert [cell.text for cell in table.rows[0]] == ["t1", "0.1000", "n/a", "0.9000"]
    assert [cell.text for cell in table.foot[0]] == ["Average", "0.3000", "0.4000", "n/a"]


def test_many_runs_of_few_tasks_are_rows() -> None:
    several = Gathered([outcome(settings={"k": k}, score=k / 100) for k in range(12)])
    table = grids.detail(groups_of(several)[0], None)
    assert [head.text for head in table.heads] == ["Run", "STS", "Average"]
    assert [row[0].text for row in table.rows][:2] == ["m · k=0", "m · k=1"]
    assert table.rows[11][1].best


def test_what_is_missing_is_said() -> None:
    gathered = three_runs()
    notes = missing(gathered, groups_of(gathered), str)
    assert "STS: b lacks 1 task: t1." in notes
    assert "STS: c lacks 3 tasks (fewer than half: no average): t2, t3, t4." in notes
    assert "STS: averages are over the 3 tasks that all others have." in notes
    many = Gathered([outcome(f"t{i}", "a") for i in range(2000)] + [outcome(f"t{i}", "b") for i in range(1000)])
    assert len(missing(many, groups_of(many), str)[0]) < 300


def test_how_it_was_made() -> None:
    again = outcome(made="2026-02-01", settings={"limit": 5, "shots": 1}, versions={"gritkit": "0.2"}, seconds=100.0)
    first = outcome("other", settings={"limit": 5, "shots": 2})
    old = outcome(made="2026-01-01", settings={"limit": 5, "shots": 1})
    gathered = Gathered([first, old, again])
    (line,) = made_of(gathered)
    assert (line.settings, line.versions, line.seconds) == ("limit=5", "gritkit 0.1 and 0.2", 101.5)
    assert line.dates == "2026-01-02 to 2026-02-01"
    assert left_out(gathered, str) == [
        "1 older result of the same run and task left out, the latest stands: STS of m (2026-01-01)."
    ]
