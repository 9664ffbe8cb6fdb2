from __future__ import annotations

from typing import Any

import pytest

from gritkit.data import EmbeddingRecord, GenerativeRecord, Text, parse_record
from gritkit.errors import RecordError


def test_plain_and_instructed_texts() -> None:
    plain = parse_record({"query": "q", "pos": ["p"], "neg": []})
    assert plain == EmbeddingRecord(query=Text(None, "q"), pos=(Text(None, "p"),))
    row = {"query": ["\tFind it: \n", " q "], "pos": [["", "p"], "bare"], "neg": [["Find it", "n"]]}
    instructed = parse_record(row)
    assert instructed == EmbeddingRecord(
        query=Text("Find it", " q "), pos=(Text(None, "p"), Text(None, "bare")), neg=(Text("Find it", "n"),)
    )


def test_optional_columns_are_kept() -> None:
    row = {"query": "q", "pos": ["p"], "neg": ["a", "b"], "pos_scores": [1], "neg_scores": [0.5, 0], "task": "t"}
    record = parse_record({**row, "label": 3, "answer": None, "other": object()})
    assert isinstance(record, EmbeddingRecord)
    assert (record.pos_scores, record.neg_scores, record.task, record.label) == ((1.0,), (0.5, 0.0), "t", 3)


def test_answers_and_ids_are_kept_the_ids_as_text() -> None:
    record = parse_record(
        {"query": "q", "pos": ["p"], "neg": ["n"], "answer": " a", "query_id": 7, "pos_ids": ["x"], "neg_ids": [0]}
    )
    assert isinstance(record, EmbeddingRecord)
    assert (record.answer, record.query_id, record.pos_ids, record.neg_ids) == (" a", "7", ("x",), ("0",))
    bare = parse_record({"query": "q", "pos": ["p"], "neg": [], "pos_ids": [1], "neg_ids": []})
    assert isinstance(bare, EmbeddingRecord)
    assert (bare.pos_ids, bare.neg_ids, bare.answer) == (("1",), None, None)


def test_generative_forms() -> None:
    messages = ({"role": "user", "content": "u"}, {"role": "assistant", "content": "a"})
    assert parse_record({"text": "raw"}) == GenerativeRecord(text="raw")
    assert parse_record({"text": ["u", "a"]}) == GenerativeRecord(messages=messages)
    assert parse_record({"messages": list(messages)}) == GenerativeRecord(messages=messages)
    system = {"role": "system", "content": "s"}
    assert parse_record({"messages": [system, *messages]}) == GenerativeRecord(messages=(system, *messages))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([], "is list, not an object"),
        ({}, "its columns: none"),
        ({"instruction": "x", "answer": "y"}, "its columns: instruction, answer"),
        ({"query": "q"}, "has no pos"),
        ({"pos": ["p"]}, "has no query"),
        ({"query": "q", "pos": []}, "pos is empty"),
        ({"query": "q", "pos": "p"}, "pos is str, not a list"),
        ({"query": " \n", "pos": ["p"]}, "query is empty"),
        ({"query": "q", "pos": ["p", ""]}, r"pos\[1\] is empty"),
        ({"query": 3, "pos": ["p"]}, "query is neither a string nor"),
        ({"query": ["i", "t", "x"], "pos": ["p"]}, "query is neither a string nor"),
        ({"query": [1, "t"], "pos": ["p"]}, "instruction of query is int"),
        ({"query": "q", "pos": ["p"], "neg": [None]}, r"neg\[0\] is neither"),
        ({"query": "a\ud800", "pos": ["p"]}, "lone surrogate"),
        ({"query": "q", "pos": ["p"], "pos_scores": [1, 2]}, "pos_scores needs one number"),
        ({"query": "q", "pos": 3, "pos_scores": [1]}, "pos is int, not a list"),
        ({"query": "q", "pos": ["p"], "answer": ""}, "answer is empty"),
        ({"query": "q", "pos": ["p"], "answer": ["a"]}, "answer is list, not text"),
        ({"query": "q", "pos": ["p"], "query_id": 1.5}, "query_id is neither a string nor an integer: 1.5"),
        ({"query": "q", "pos": ["p"], "query_id": True}, "query_id is neither a string nor an integer: True"),
        ({"query": "q", "pos": ["p"], "pos_ids": 3}, "pos_ids is int, not a list"),
        ({"query": "q", "pos": ["p"], "pos_ids": [""]}, r"pos_ids\[0\] is neither"),
        ({"query": "q", "pos": ["p"], "pos_ids": [1, 2]}, "pos_ids needs one id for each of the 1 texts"),
        ({"query": "q", "pos": ["p"], "pos_ids": [1], "neg": ["n"], "neg_ids": []}, "each of the 1 texts"),
        ({"query": "q", "pos": ["p"], "pos_ids": [1], "neg": ["n"]}, "some passages have ids .* add neg_ids"),
        ({"query": "q", "pos": ["p"], "neg": ["n"], "neg_ids": [1]}, "some passages have ids .* add pos_ids"),
        ({"text": ""}, "text is empty"),
        ({"text": 3}, "neither a string nor a list of turns"),
        ({"text": []}, "neither a string nor a list of turns"),
        ({"text": ["u", "a", "u"]}, "last of the 3 turns is the user's"),
        ({"text": ["u", 3]}, "lacks 'role' or 'content'"),
        ({"text": ["u", " "]}, "the answer of turn 0 is empty"),
        ({"text": ["u", "a\udfff"]}, "lone surrogate"),
        ({"messages": "hello"}, "messages is a string"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "out of turn"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "needs a role"),
        ({"messages": [{"role": "user", "content": "u"}]}, "no answer to train on"),
    ],
)
def test_bad_records_say_what_is_wrong(row: Any, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        parse_record(row)


def test_a_generative_record_is_one_of_two() -> None:
    with pytest.raises(RecordError, match="either messages or a text"):
        GenerativeRecord()


def test_records_of_alpacas_form() -> None:
    record = parse_record({"instruction": "Add them.", "input": "1 and 2", "output": "3", "category": "math"})
    assert record == GenerativeRecord.of(["Add them.\n\n1 and 2", "3"])
    for row in ({"instruction": "Say hi.", "output": "hi"}, {"instruction": "Say hi.", "input": "", "output": "hi"}):
        assert parse_record(row) == GenerativeRecord.of(["Say hi.", "hi"])
    with pytest.raises(RecordError, match="must be strings"):
        parse_record({"instruction": ["a"], "output": "b"})
    with pytest.raises(RecordError, match="the answer of turn 0 is empty"):
        parse_record({"instruction": "a", "output": " "})
