from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from gritkit.errors import InputError, RecordError
from gritkit.rag.questions import Exam, Passage, exam_of, load_exams


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_forms_of_a_question() -> None:
    assert exam_of({"question": "q", "answer": "a"}) == Exam("q", ("a",))
    passages = [{"title": "t", "text": "one", "gold": False}, "two", {"text": "three"}]
    told = exam_of({"question": "q", "answer": ["a", "b"], "passages": passages})
    assert told.answers == ("a", "b")
    assert told.passages == (Passage("one", False), Passage("two", True), Passage("three", True))
    columns = exam_of({"query": "q", "answer": "a", "positive": ["yes"], "negative": ["no"]})
    assert columns == Exam("q", ("a",), (Passage("yes", True), Passage("no", False)))


def test_every_bad_record_is_named(tmp_path: Path) -> None:
    bad: list[Any] = [
        ["q", "a"],
        {"answer": "a"},
        {"question": "q"},
        {"question": "q", "answer": []},
        {"question": "q", "answer": ["a", 3]},
        {"question": " ", "answer": "a"},
        {"question": "q", "answer": "a", "passages": "text"},
        {"question": "q", "answer": "a", "passages": [{"title": "t"}]},
        {"question": "q", "answer": "a", "passages": [{"text": "t", "gold": "yes"}]},
    ]
    path = write(tmp_path / "bad.jsonl", {"question": "q", "answer": "a"}, *bad)
    path.write_text(path.read_text(encoding="utf-8") + "{torn", encoding="utf-8")
    with pytest.raises(RecordError) as error:
        load_exams(path)
    said = str(error.value)
    assert f"{len(bad) + 1} bad records" in said
    for line in range(2, len(bad) + 3):
        assert f"bad.jsonl:{line}: " in said
    assert "bad.jsonl:1:" not in said
    assert "answer[1] is int, not text" in said
    assert "passages[0] has gold='yes'" in said


def test_torn_empty_and_missing_files(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"question": "q", "answer": "a"}\n' * 20000)
    torn = tmp_path / "torn.jsonl.gz"
    torn.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecordError, match=r"torn\.jsonl\.gz.*the gzip file ends too early"):
        load_exams(torn)
    (tmp_path / "empty.jsonl").write_text("\n\n", encoding="utf-8")
    with pytest.raises(RecordError, match=r"empty\.jsonl: the file has no questions"):
        load_exams(tmp_path / "empty.jsonl")
    with pytest.raises(InputError, match="no such file"):
        load_exams(tmp_path / "missing.jsonl")


def test_a_limit_keeps_the_first(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", *({"question": f"q{i}", "answer": "a"} for i in range(5)))
    assert [exam.question for exam in load_exams(path, limit=2)] == ["q0", "q1"]
    assert len(load_exams(path)) == 5
