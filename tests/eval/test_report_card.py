from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import EvalResult, ModelCardData, RepoCard

from gritkit.errors import InputError
from gritkit_eval.report.card import END, START, own, write
from gritkit_eval.report.gathered import Gathered
from tests.outcomes import outcome

FRONT = """---
# what it is
license: apache-2.0   # ours
tags: [a, b]
model-index:
- name: tiny
  results:
  - task: {type: text-classification}
    dataset: {name: IMDb, type: imdb}
    metrics:
    - type: accuracy
      value: 0.9
# before the language
language:
- en
---
"""


def results(content: str) -> list[EvalResult]:
    """As the Hub reads them."""
    data = ModelCardData(**vars(RepoCard(content).data))
    assert data.eval_results is not None
    return data.eval_results


def card(tmp_path: Path, content: str | None, *made: Any, name: str = "tiny") -> str:
    path = tmp_path / "README.md"
    if content is not None:
        path.write_bytes(content.encode())
    write(Gathered(made or [outcome(score=0.25), outcome("t", score=math.nan)]), tmp_path, name)
    return path.read_bytes().decode()


def test_a_new_card(tmp_path: Path) -> None:
    written = card(tmp_path, None)
    assert written.count(START) == written.count(END) == 1
    assert "\n# tiny\n\n<!-- gritkit eval -->\n\n## Evaluation\n" in written
    assert "| STS | 0.2500 |" in written
    (result,) = results(written)
    assert (result.task_type, result.dataset_name, result.dataset_revision) == ("STS", "STS", "1")
    assert (result.metric_type, result.metric_value) == ("spearman", 0.25)
    assert card(tmp_path, None) == written


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_everything_else_is_kept_byte_for_byte(tmp_path: Path, ending: str, mark: str) -> None:
    before = mark + (FRONT + "\n# Mine  \n\ttext\n").replace("\n", ending)
    after = card(tmp_path, before)
    head, rest = after.split(f"model-index:{ending}")
    assert head == before.split(f"model-index:{ending}")[0]
    tail = "# before the language\nlanguage:\n- en\n---\n\n# Mine  \n\ttext\n".replace("\n", ending)
    body = rest[rest.index("# before the language") :]
    assert body.startswith(tail)
    assert body[len(tail) :].startswith(f"{ending}{START}{ending}")
    assert "\n" not in after.replace("\r\n", "") if ending == "\r\n" else "\r" not in after
    kept = results(after.removeprefix("\ufeff"))
    assert [(one.dataset_name, one.metric_value) for one in kept] == [("IMDb", 0.9), ("STS", 0.25)]


def test_the_next_run_replaces_its_own_and_nothing_else(tmp_path: Path) -> None:
    first = card(tmp_path, FRONT + "# Mine\n")
    path = tmp_path / "README.md"
    path.write_text(first + "\nwritten later\n", encoding="utf-8")
    second = card(tmp_path, None, outcome("other", score=0.75))
    assert second.endswith(f"{END}\n\nwritten later\n")
    assert second.count(START) == 1
    assert [(one.dataset_name, one.metric_value) for one in results(second)] == [("IMDb", 0.9), ("other", 0.75)]
    assert card(tmp_path, None, outcome("other", score=0.75)) == second


def test_results_that_end_the_front_matter_and_those_of_other_models(tmp_path: Path) -> None:
    other = "---\nmodel-index:\n- name: x\n  results:\n  - task: {type: t}\n- name: y\n  results: []\n---\n"
    after = card(tmp_path, other)
    index = RepoCard(after).data["model-index"]
    assert [(entry["name"], len(entry["results"])) for entry in index] == [("x", 1), ("tiny", 1)]
    after = card(tmp_path, "---\n---\ntext")
    assert after.endswith(f"\n---\ntext\n\n{START}" + after.split(START)[1])


def test_settings_and_two_results_of_one_task_stay_apart(tmp_path: Path) -> None:
    after = card(tmp_path, "", *(outcome(score=k / 1000, settings={"shots": k}) for k in (4, 8)))
    index = RepoCard(after).data["model-index"]
    found = [(one["dataset"]["args"], one["metrics"][0]["value"]) for one in index[0]["results"]]
    assert found == [
        ({"made_by": "gritkit eval mteb", "shots": 4}, 0.004), ({"made_by": "gritkit eval mteb", "shots": 8}, 0.008),
    ]  # fmt: skip


def test_the_model_index_has_whole_tasks_by_the_model_as_it_is(tmp_path: Path) -> None:
    after = card(
        tmp_path, "", outcome("whole", score=0.25), outcome("some", settings={"limit": 10, "seed": 3}),
        outcome("cut", settings={"dim": 64}), outcome("half", settings={"layers": 2}),
        outcome("far", kind="similarity"),
    )  # fmt: skip
    assert [one.dataset_name for one in results(after)] == ["whole"]
    assert "limit=10, seed=3" in after.split(START)[1]
    assert card(tmp_path, None, outcome("some", settings={"limit": 10})).count("model-index") == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("---\na: [\n---\n", "the front matter of .*README.md is not YAML"),
        ("---\njust words\n---\n", "is str, not keys with values"),
        ("---\nmodel-index: 3\n---\n", "model-index in the front matter of .* is not a list of entries"),
        ("---\nmodel-index: &x\n- name: a\n  results: [b]\nmore: *x\n---\n", "shares parts between keys"),
        (
            "---\na: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefgh")) + "---\n",
            "aliases",
        ),
        ("---\na: " + "[" * 5000 + "]" * 5000 + "\n---\n", "is not YAML"),
        ("---\n{license: mit, model-index: []}\n---\n", "cannot be replaced alone|not YAML"),
        (f"text\n{START}\n", "has 1 times .* and 0 times"),
        (f"{END}\n{START}\n", "leave one of each, in this order"),
    ],
)
def test_a_card_that_cannot_be_merged_is_left_alone(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        card(tmp_path, content)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == content


def test_a_card_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"cannot read .*README\.md"):
        card(tmp_path, None)


def test_a_name_cannot_end_the_section(tmp_path: Path) -> None:
    after = card(tmp_path, "", outcome(END, score=0.5), outcome(f"\n---\n{START}", score=0.25))
    assert after.count(START) == after.count(END) == 2 - 1 + after.split("---")[1].count(END)
    assert card(tmp_path, None, outcome(END, score=0.5)).count("## Evaluation") == 1


def test_only_its_own_results(tmp_path: Path) -> None:
    gathered = Gathered([outcome(model="a", fingerprint="f" * 64), outcome(model="b", fingerprint="e" * 64)])
    mine = own(gathered, "e" * 64, tmp_path)
    assert [one.model for one in mine.outcomes] == ["b"]
    with pytest.raises(InputError, match=r"are of a \(f{12}\), b \(e{12}\), none of the model in .*\(d{12}\)"):
        own(gathered, "d" * 64, tmp_path)
