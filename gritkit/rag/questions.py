"""Question files: what answers are measured with.

    {"question": str, "answer": str | [str, ...]}                                    one to a line
    + "passages": [str | {"text": str, "title": str, "gold": bool}, ...]             what the question is about
    or "positive": [str, ...] and "negative": [str, ...]                             the same, told apart by column

``query`` may stand for ``question``. Of passages that say nothing about it, all are gold.

This module knows nothing about models or knowledge bases.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gritkit.data.reading import DamagedFile, file_rows
from gritkit.data.sources import Problems
from gritkit.errors import InputError, RecordError
from gritkit.files import resolve
from gritkit.tokens import check_text


@dataclass(frozen=True)
class Passage:
    """A text that comes with a question."""

    text: str
    gold: bool
    """Whether the answer can be found in it."""


@dataclass(frozen=True)
class Exam:
    """A question, what counts as its answer, and the passages that come with it."""

    question: str
    answers: tuple[str, ...]
    passages: tuple[Passage, ...] = ()


def load_exams(path: str | os.PathLike[str], *, limit: int | None = None) -> list[Exam]:
    """The questions of a JSON Lines (plain, ``.gz``, ``.zst``) or Parquet file, the first ``limit`` of them.

    Raises:
        RecordError: naming file and line of every record that is none, and for a file that has no records at all.
        InputError: where there is no such file.
    """
    file = resolve(path)
    if not file.is_file():
        raise InputError(f"no such file: {file}")
    problems, exams = Problems(outcome="nothing was measured"), []
    for line, row in _rows(file, problems):
        try:
            if isinstance(row, RecordError):
                raise row
            exams.append(exam_of(row))
        except RecordError as error:
            problems.add(f"{file.name}:{line}", str(error))
        if limit is not None and len(exams) >= limit:
            break
    if not exams and not problems.total:
        problems.add(file.name, "the file has no questions")
    problems.check()
    return exams


def _rows(file: Path, problems: Problems) -> Iterator[tuple[int, Any]]:
    """The rows of a file; one that ends early is a problem."""
    line = 0
    try:
        for line, row in file_rows(file):
            yield line, row
    except DamagedFile as error:
        problems.add(f"{file.name}:{line}", f"{error} after this line" if line else str(error))


def exam_of(row: Any) -> Exam:
    """From a JSON object. Raises RecordError with what is wrong, without a place."""
    if not isinstance(row, Mapping):
        raise RecordError(f"the record is {type(row).__name__}, not an object: {row!r:.80}")
    asked = row.get("question", row.get("query"))
    if asked is None:
        columns = ", ".join(str(name) for name in list(row)[:8]) or "none"
        raise RecordError(f"the record has no question (its columns: {columns})")
    if row.get("answer") is None:
        raise RecordError("the record has no answer: give a string, or a list of all that count")
    answers = row["answer"] if isinstance(row["answer"], (list, tuple)) else [row["answer"]]
    if not answers:
        raise RecordError("answer is an empty list: give at least one")
    return Exam(
        _worded(asked, "question"),
        tuple(_worded(one, f"answer[{i}]") for i, one in enumerate(answers)),
        tuple(_passages(row)),
    )


def _passages(row: Mapping[str, Any]) -> Iterator[Passage]:
    if row.get("passages") is not None:
        for index, one in enumerate(_listed(row["passages"], "passages")):
            what = f"passages[{index}]"
            if isinstance(one, str):
                yield Passage(_worded(one, what), True)
                continue
            if not isinstance(one, Mapping) or "text" not in one:
                raise RecordError(f"{what} is neither a string nor an object with a text: {one!r:.80}")
            gold = one.get("gold", True)
            if not isinstance(gold, bool):
                raise RecordError(f"{what} has gold={gold!r:.40}: it is true or false")
            yield Passage(_worded(one["text"], f"{what}.text"), gold)
        return
    for column, gold in (("positive", True), ("negative", False)):
        for index, one in enumerate(_listed(row.get(column) or [], column)):
            yield Passage(_worded(one, f"{column}[{index}]"), gold)


def _listed(value: Any, what: str) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise RecordError(f"{what} is {type(value).__name__}, not a list: {value!r:.80}")
    return value


def _worded(value: Any, what: str) -> str:
    try:
        text = check_text(value, what)
    except InputError as error:
        raise RecordError(str(error)) from None
    if not text.strip():
        raise RecordError(f"{what} is empty")
    return text
