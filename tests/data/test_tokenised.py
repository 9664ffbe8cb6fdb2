from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

from gritkit.data import EmbeddingRecord, GenerativeRecord, Lengths, Source, load, tokenise
from gritkit.data.tokenised import words_id
from gritkit.errors import RecordError
from gritkit.prompts import prompt_format
from gritkit.tokens import Tokens
from tests.models import tokenizer

LENGTHS = Lengths(query=40, passage=48, generative=64)


def tokens(name: str = "grit") -> Tokens:
    return Tokens(tokenizer(), prompt_format(name))


def test_sequences_are_those_of_the_tokens_side_in_the_right_role() -> None:
    records = [
        EmbeddingRecord.of(["Find", "one"], ["p1", ["Read", "p2"]], ["n1"]),
        EmbeddingRecord.of("two", ["p1"], ["one"]),
    ]
    for name in ("grit", "instruct-query"):
        if name == "instruct-query":  # has no place for an instruction in a passage
            records = [EmbeddingRecord.of(["Find", "one"], ["p1", "p2"], ["n1"]), records[1]]
        own = tokens(name)
        data = tokenise(load(records), own, LENGTHS)
        ((_, rows),) = data.embedding
        for row, record in zip(rows, records, strict=True):
            for role, numbers, texts in (
                ("query", [row.query], [record.query]),
                ("passage", row.pos, record.pos),
                ("passage", row.neg, record.neg),
            ):
                for number, text in zip(numbers, texts, strict=True):
                    (expected,) = own.to_embed([text.text], role, text.instruction, 99, truncate=False)
                    np.testing.assert_array_equal(data.texts.sequences[number].ids, expected.ids)
                    np.testing.assert_array_equal(data.texts.sequences[number].pool_mask, expected.pool_mask)
        words = data.texts.words
        assert rows[0].pos[0] == rows[1].pos[0]
        assert words[rows[0].query] == words[rows[1].neg[0]]  # the same words, though another role and instruction
        assert words[rows[0].query] != words[rows[1].query]


def test_truncation_keeps_the_end_of_text() -> None:
    own = tokens("instruct-query")
    long = "word " * 5000
    data = tokenise(load([EmbeddingRecord.of(long, [long]), GenerativeRecord.of(long)]), own, LENGTHS)
    ((_, (row,)),) = data.embedding
    query, passage = data.texts.sequences[row.query], data.texts.sequences[row.pos[0]]
    assert (len(query), len(passage)) == (40, 48)
    (text,) = data.generative
    assert len(text) == 64
    assert query.ids[-1] == passage.ids[-1] == text.ids[-1] == own.eos_id
    assert text.loss_mask[-1]


def test_a_cut_answer_ends_and_a_cut_question_does_not_pretend_to() -> None:
    own = tokens()
    chat = ["question", "answer " * 40, "second " * 40, "never reached"]
    (cut,) = tokenise(load([GenerativeRecord.of(chat)]), own, LENGTHS).generative
    whole = own.chat_example(GenerativeRecord.of(chat).messages)
    assert cut.ids[-1] == own.eos_id
    np.testing.assert_array_equal(cut.ids[:-1], whole.ids[:63])
    np.testing.assert_array_equal(cut.loss_mask, whole.loss_mask[:64])
    answered = int(np.flatnonzero(whole.loss_mask & (whole.ids == own.eos_id))[0])
    (inside,) = tokenise(
        load([GenerativeRecord.of(chat)]), own, Lengths(query=9, passage=9, generative=answered + 9)
    ).generative
    assert not inside.loss_mask[-1]
    assert inside.ids[-1] == whole.ids[answered + 8]


def test_unusable_records_are_reported_with_their_places() -> None:
    wordy = "instruct " * 50
    sources: list[Any] = [
        Source("a.jsonl", "embedding", [
            EmbeddingRecord.of("fine", ["fine"]),
            EmbeddingRecord.of([wordy, "q"], ["p"]),
            EmbeddingRecord.of("fine", ["fine", [wordy, "p"]], [[wordy, "p"]]),
        ], [1, 2, 5]),
        Source("b.jsonl", "generative", [
            GenerativeRecord.of("fine"), GenerativeRecord.of(["user " * 99, "answer"]),
        ], [1, 2]),
    ]  # fmt: skip
    with pytest.raises(RecordError) as caught:
        tokenise(sources, tokens(), LENGTHS)
    first, *rest = str(caught.value).split("\n  ")
    assert first.startswith("4 bad records")
    assert rest[0].startswith("a.jsonl:2: query has no token left beside its prompt")
    assert rest[1].startswith("a.jsonl:5: pos[1] has no token left")
    assert rest[2].startswith("a.jsonl:5: neg[0] has no token left")
    assert rest[3].startswith("b.jsonl:2: nothing of the ")
    assert "tokens to train on is within the first 64 of" in rest[3]


def test_a_format_without_a_place_for_the_instruction_is_reported() -> None:
    with pytest.raises(RecordError, match=r"records:0: query: the prompt format 'e5' has no place"):
        tokenise(load([EmbeddingRecord.of(["i", "q"], ["p"])]), tokens("e5"), LENGTHS)


def test_very_long_texts_cost_no_more_than_their_kept_part() -> None:
    book = "many words of a long book " * 40_000  # 1 MB
    started = time.perf_counter()
    tokenise(load([EmbeddingRecord.of(f"{i} {book}", ["p"]) for i in range(20)]), tokens(), LENGTHS)
    assert time.perf_counter() - started < 5


def test_ids_name_texts_within_a_source_apart_for_queries_and_passages() -> None:
    def record(query: str, pos: str, **ids: Any) -> EmbeddingRecord:
        return EmbeddingRecord.of(query, [pos], **ids)

    sources = [
        Source("a.jsonl", "embedding", [
            record("q", "one", query_id=1, pos_ids=[1]),
            record("q", "another", query_id="2", pos_ids=["1"]),
            record(" q\n", "one"),
        ]),
        Source("b.jsonl", "embedding", [record("q", "one", query_id=1, pos_ids=[1])]),
    ]  # fmt: skip
    data = tokenise(list(sources), tokens(), LENGTHS)
    (_, (first, second, third)), (_, (other,)) = data.embedding
    words = data.texts.words
    assert words[first.pos[0]] == words[second.pos[0]]  # 1 and "1" name one text, whatever its words
    assert words[first.query] != words[second.query]  # the same words under two names
    assert words[first.query] != words[first.pos[0]]
    assert words[third.pos[0]] not in (words[first.pos[0]], words[other.pos[0]])  # without an id: another text
    assert words[other.pos[0]] != words[first.pos[0]]  # another source's 1
    assert words[third.query] == words_id("q", "passage", "b.jsonl")
    assert words.min() >= 0
    assert data.texts.sequences[first.pos[0]].ids.tolist() != data.texts.sequences[second.pos[0]].ids.tolist()


def test_words_are_the_same_in_every_process() -> None:
    call = (
        "from gritkit.data.tokenised import words_id as w; print(w(' é ', 'query', 's'), w('', 'query', 's.json', '7'))"
    )
    said = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=True).stdout
    assert said.split() == [str(words_id("é", "passage", "t")), str(words_id("x", "query", "s.parquet", "7"))]


def test_answers_follow_the_bare_question() -> None:
    own = tokens()
    records = [
        EmbeddingRecord.of(["Find it", "who?"], ["p"], answer="me"),
        EmbeddingRecord.of("no answer", ["p"]),
        EmbeddingRecord.of("long?", ["p"], answer="answer " * 5000),
    ]
    lengths = Lengths(query=40, passage=48, generative=160)
    data = tokenise(load(records), own, lengths)
    ((_, rows),) = data.embedding
    assert [row.answer for row in rows] == [0, None, 1]
    for made, question, answer in zip(data.answers, ("who?", "long?"), ("me", "answer " * 5000), strict=True):
        expected = own.answer_example(question, answer, lengths.generative)
        np.testing.assert_array_equal(made.ids, expected.ids)
        np.testing.assert_array_equal(made.loss_mask, expected.loss_mask)
    assert len(data.answers[1]) == lengths.generative


def test_an_answer_that_does_not_fit_is_reported_with_its_place() -> None:
    records = [EmbeddingRecord.of("fine?", ["p"], answer="a"), EmbeddingRecord.of("why " * 99, ["p"], answer="a")]
    with pytest.raises(RecordError, match=r"^1 bad .*\n.*records:1: nothing of the answer is within 160 tokens"):
        tokenise(load(records), tokens(), Lengths(query=40, passage=48, generative=160))
