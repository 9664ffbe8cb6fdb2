from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gritkit.errors import InputError, RecordError
from tests.eval.mteb_data import TEXTS, every_kind, write

pytest.importorskip("mteb")

from gritkit_eval.mteb.local import load_tasks

ALL = {
    "bitext.mirror": "BitextMining", "classification.acts": "Classification", "clustering.acts": "Clustering",
    "pair_classification.same": "PairClassification", "reranking.acts": "Reranking", "retrieval.animals": "Retrieval",
    "sts.water": "STS", "summarization.notes": "Summarization",
}  # fmt: skip


def revision(task: Any) -> str:
    found: str = task.metadata.revision
    return found


def test_every_set_of_a_folder_becomes_a_task_of_its_type(tmp_path: Path) -> None:
    tasks = load_tasks(every_kind(tmp_path))
    assert {task.metadata.name: task.metadata.type for task in tasks} == ALL
    by_name: Any = {task.metadata.name: task.dataset for task in tasks}
    assert by_name["bitext.mirror"]["deu-eng"]["test"]["sentence1"][0] == TEXTS[0].upper()
    assert by_name["sts.water"]["test"].column_names == ["sentence1", "sentence2", "score"]
    assert set(by_name["classification.acts"]["train"]["label"]) == set(range(6))
    retrieval = by_name["retrieval.animals"]["default"]["test"]
    assert len(retrieval["corpus"]) == len(TEXTS) + 1
    assert len(retrieval["queries"]) == 7  # the eighth was never judged


def test_names_and_types_choose(tmp_path: Path) -> None:
    data = every_kind(tmp_path)
    assert [task.metadata.name for task in load_tasks(data, types=["pair-classification", "STS"])] == [
        "pair_classification.same", "sts.water",
    ]  # fmt: skip
    assert [task.metadata.name for task in load_tasks(data, ["sts.water"])] == ["sts.water"]
    with pytest.raises(InputError, match=r"no task is called 'sts.wine'; the tasks: bitext.mirror, .*sts.water"):
        load_tasks(data, ["sts.wine"])
    with pytest.raises(InputError, match="no type is called 'sims'; the types: BitextMining"):
        load_tasks(data, types=["sims"])
    with pytest.raises(InputError, match="no task is of the types STS"):
        load_tasks(data, ["bitext.mirror"], ["STS"])


def test_a_limit_keeps_the_same_examples_for_a_seed_and_every_judged_passage(tmp_path: Path) -> None:
    data = every_kind(tmp_path)
    whole: Any = {task.metadata.name: task for task in load_tasks(data)}
    one: Any = {task.metadata.name: task for task in load_tasks(data, limit=4, seed=1)}
    for again in load_tasks(data, limit=4, seed=1):
        assert revision(again) == revision(one[again.metadata.name]) != revision(whole[again.metadata.name])
    assert any(revision(other) != revision(one[other.metadata.name]) for other in load_tasks(data, limit=4, seed=2))
    assert len(one["sts.water"].dataset["test"]) == 4
    assert len(one["classification.acts"].dataset["test"]) == 4
    assert len(one["classification.acts"].dataset["train"]) == len(whole["classification.acts"].dataset["train"])
    write(data / "classification/large/test.jsonl", [{"text": "b", "label": 0}, {"text": "c", "label": 1}])
    write(data / "classification/large/train.jsonl", [{"text": f"{n}", "label": n % 2} for n in range(400)])
    (large,) = load_tasks(data, ["classification.large"], limit=2)
    assert large.dataset["train"]["label"].count(0) == large.dataset["train"]["label"].count(1) == 64  # type: ignore
    assert len(one["bitext.mirror"].dataset["fra-eng"]["test"]) == 4
    (few,) = load_tasks(data, ["retrieval.animals"], limit=2)
    split: Any = few.dataset["default"]["test"]  # type: ignore[index]
    judged = {document for grades in split["relevant_docs"].values() for document in grades}
    assert len(split["relevant_docs"]) == len(split["queries"]) == 2
    assert judged <= set(split["corpus"]["id"])
    assert len(split["corpus"]) == len(judged) + 4 * 2


def test_a_limit_holds_for_many_languages_together(tmp_path: Path) -> None:
    rows = [{"lang": f"l{n % 20}", "sentence1": f"a {n}", "sentence2": f"b {n}"} for n in range(2000)]
    write(tmp_path / "bitext/many/test.jsonl", rows)
    for limit, kept in ((100, 50), (10, 10), (4, 4)):
        (task,) = load_tasks(tmp_path, limit=limit)
        data: Any = task.dataset
        assert {len(splits["test"]) for splits in data.values()} == {kept}


def test_a_task_has_the_version_of_what_is_measured_on(tmp_path: Path) -> None:
    data = every_kind(tmp_path)
    (before,) = load_tasks(data, ["sts.water"])
    (with_a_limit_that_cuts_nothing,) = load_tasks(data, ["sts.water"], limit=1000)
    assert revision(before) == revision(with_a_limit_that_cuts_nothing)
    path = data / "sts/water/test.jsonl"
    path.write_text(path.read_text().replace("beaver", "badger"))
    (after,) = load_tasks(data, ["sts.water"])
    assert revision(before) != revision(after)


def test_sets_that_ask_what_a_grit_task_asks_take_its_instruction(tmp_path: Path) -> None:
    data = every_kind(tmp_path)
    shutil.move(data / "classification/acts", data / "classification/banking77")
    tasks: Any = {task.metadata.name: task for task in load_tasks(data, types=["classification", "clustering"])}
    assert tasks["classification.banking77"].metadata.prompt.startswith("Given a online banking query")
    assert tasks["clustering.banking77"].metadata.prompt is None


STS, PAIRS, RERANKING = "sts/water/test.jsonl", "pair_classification/same/test.jsonl", "reranking/acts/test.jsonl"
CORPUS, QRELS = "retrieval/animals/corpus.jsonl", "retrieval/animals/qrels.jsonl"
SUMMARIES = "summarization/notes/test.jsonl"


def spoil(data: Path, file: str, change: Callable[[dict[str, Any]], Any], line: int = 2) -> None:
    """Change a record; what is a string after that takes its line."""
    lines = (data / file).read_text().splitlines()
    row = json.loads(lines[line - 1])
    changed = change(row)
    lines[line - 1] = changed if isinstance(changed, str) and changed[:1] in "[{" else json.dumps(row)
    (data / file).write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        (STS, lambda row: row.pop("score"), "'score' must be a finite number, not None"),
        (STS, lambda row: row.update(score=float("nan")), "'score' must be a finite number, not nan"),
        (STS, lambda row: row.update(score=True), "'score' must be a finite number, not True"),
        (STS, lambda row: row.update(sentence1=" "), "'sentence1' is empty"),
        (STS, lambda row: row.update(sentence2="\ud800"), "'sentence2' holds half of a surrogate pair"),
        (STS, lambda row: '{"sentence1": ', "not JSON"),
        (STS, lambda row: "[3]", "an object is needed, not list"),
        (PAIRS, lambda row: row.update(label=2), "'label' must be 0 or 1, not 2"),
        (PAIRS, lambda row: row.pop("premise"), "no field 'sentence1' or 'premise'; there are hypothesis, label"),
        (RERANKING, lambda row: row.update(negative=[]), "'negative' must be a list of texts, not []"),
        (RERANKING, lambda row: row["negative"].extend(row["positive"]), "a text is both positive and negative"),
        (QRELS, lambda row: row.update(corpus_id="d99"), "no document has the id 'd99'"),
        (QRELS, lambda row: row.update(query_id=99), "no query has the id '99'"),
        (QRELS, lambda row: row.update(score=0.5), "'score' must be a whole number, not 0.5"),
        (QRELS, lambda row: row.update(corpus_id="d0", score=2), "a second grade of document 'd0' for query '0'"),
        (CORPUS, lambda row: row.update(_id="d0"), "the id 'd0' stands more than once"),
        (SUMMARIES, lambda row: row["relevance"].pop(), "4 machine_summaries but 3 of relevance"),
    ],
)
def test_bad_records_are_named_with_file_and_line(
    tmp_path: Path, file: str, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    data = every_kind(tmp_path)
    spoil(data, file, change)
    with pytest.raises(RecordError, match=re.escape(f"{file}:2: {said}")):
        load_tasks(data)


def test_all_bad_records_of_all_files_are_reported_at_once(tmp_path: Path) -> None:
    data = every_kind(tmp_path)
    spoil(data, STS, lambda row: row.pop("score"))
    spoil(data, RERANKING, lambda row: row.pop("query"))
    with pytest.raises(RecordError, match=r"2 bad records; .*nothing was measured") as caught:
        load_tasks(data)
    assert f"{STS}:2" in str(caught.value)
    assert f"{RERANKING}:2" in str(caught.value)


def test_data_that_leave_nothing_to_tell_apart_are_refused(tmp_path: Path) -> None:
    data = every_kind(tmp_path)
    write(data / "sts/water/test.jsonl", [{"sentence1": "a", "sentence2": "b", "score": 1}] * 3)
    write(data / "pair_classification/same/test.jsonl", [{"sentence1": "a", "sentence2": "b", "label": 1}] * 3)
    write(data / "classification/one/train.jsonl", [{"text": "a", "label": "x"}] * 3)
    write(data / "classification/one/test.jsonl", [{"text": "b", "label": "y"}])
    write(data / "clustering/one/test.jsonl", [{"text": "b", "label": "y"}])
    write(data / "retrieval/animals/qrels.jsonl", [{"query_id": 0, "corpus_id": "d1", "score": 0}])
    with pytest.raises(RecordError) as caught:
        load_tasks(data)
    for said in (
        "sts.water: all 3 pairs have one score", "pair_classification.same: all 3 pairs have the label 1",
        "classification.one: the training examples are of one class, 'x'",
        "classification/one/test.jsonl:1: the label 'y' has no training example",
        "clustering.one: all 1 texts are of one class, 'y'", "retrieval.animals: no judgement of 1 queries is above 0",
    ):  # fmt: skip
        assert said in str(caught.value)


def test_missing_double_empty_and_torn_files_are_named(tmp_path: Path) -> None:
    data = every_kind(tmp_path)
    with pytest.raises(InputError, match="no folder of data"):
        load_tasks(data / "nowhere")
    with pytest.raises(
        InputError,
        match=r"holds no data: files such as sts/NAME/test\.jsonl are read, of the kinds bitext, classification",
    ):
        load_tasks(data / "sts" / "water")
    with pytest.raises(InputError, match="limit=1"):
        load_tasks(data, limit=1)
    (data / "retrieval/animals/qrels.jsonl").rename(data / "qrels.jsonl")
    with pytest.raises(InputError, match=r"animals has no qrels file .*incomplete"):
        load_tasks(data)
    (data / "qrels.jsonl").rename(data / "retrieval/animals/qrels.jsonl")
    write(data / "sts/water/test.jsonl.gz", ["{}"])
    with pytest.raises(InputError, match=r"several test files \(test.jsonl, test.jsonl.gz\)"):
        load_tasks(data)
    (data / "sts/water/test.jsonl.gz").unlink()
    (data / "sts/water/test.jsonl").write_text("\n")
    with pytest.raises(RecordError, match=r"sts/water/test.jsonl: the file has no records"):
        load_tasks(data)
    whole = (data / "classification/acts/train.jsonl.gz").read_bytes()
    (data / "classification/acts/train.jsonl.gz").write_bytes(whole[:-20])
    with pytest.raises(RecordError, match=r"train.jsonl.gz:\d+: the gzip file ends too early"):
        load_tasks(data, types=["classification"])
