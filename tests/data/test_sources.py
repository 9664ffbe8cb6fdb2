from __future__ import annotations

import pytest

from gritkit.data import EmbeddingRecord, Source
from gritkit.data.sources import Problems, bare_name, named
from gritkit.errors import InputError, RecordError


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


def test_the_report_says_what_became_of_the_run() -> None:
    problems = Problems("training stopped")
    problems.add("a:1", "bad")
    with pytest.raises(RecordError, match="mend or remove them, training stopped:"):
        problems.check()


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".json.zst", ".parquet", ""])
def test_a_source_is_named_with_and_without_the_suffix(suffix: str) -> None:
    assert bare_name(f"nli.v1{suffix}") == "nli.v1"
    sources = [f"nli.v1{suffix}", "other.jsonl"]
    assert named("nli.v1", sources) == named(f"nli.v1{suffix}", sources) == [f"nli.v1{suffix}"]


def test_the_exact_name_goes_over_one_without_a_suffix() -> None:
    assert named("nli", ["nli.jsonl", "nli"]) == ["nli"]
    assert named("nli", ["nli.jsonl", "nli.parquet"]) == ["nli.jsonl", "nli.parquet"]


def test_an_unknown_name_is_answered_with_the_nearest_and_all() -> None:
    with pytest.raises(InputError, match=r"called 'nlj'; did you mean 'nli'\? \(the sources: msmarco.jsonl, nli.jsonl"):
        named("nlj", ["nli.jsonl", "msmarco.jsonl"])
    with pytest.raises(InputError, match="the sources: none"):
        named("nli", [])
