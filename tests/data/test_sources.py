from __future__ import annotations

import pytest

from gritkit.data import EmbeddingRecord, Source
from gritkit.data.sources import Problems
from gritkit.errors import RecordError


def test_places_of_records() -> None:
    record = EmbeddingRecord.of("q", ["p"])
    assert Source("a.jsonl", "embedding", [record, record], [3, 9]).where(1) == "a.jsonl:9"
    assert Source("list", "embedding", [record, record]).where(1) == "list:1"


def test_one_problem_and_none() -> None:
    problems = Problems()
    problems.check()
    problems.add("a:1", "bad")
    with pytest.raises(RecordError, match=r"^1 bad record; .*\n  a:1: bad$"):
        problems.check()
