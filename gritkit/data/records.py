"""What a training record is: the typed, frozen form, and how the JSON forms become it.

    embedding    {"query": str | [instruction, text], "pos": [...], "neg": [...]}
                 (+ answer, query_id, pos_ids, neg_ids, pos_scores, neg_scores, task, label)
    generative   {"text": str | [user, assistant, user, assistant, ...]}
                 or {"messages": [{"role", "content"}, ...]}
                 or {"instruction": str, "input": str, "output": str}   (Alpaca's form; input may be absent)

The entries of ``pos`` and ``neg`` are strings or ``[instruction, text]`` too. An ``answer`` to the query is trained on
as well, written after reading the record's passages. Ids (strings or integers, 7 and "7" being the same) are the data
set's own names of texts: equal ids of one source are one text, whatever their words. Other columns are ignored.

This module knows nothing about files, tokens or batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from gritkit.errors import InputError, RecordError
from gritkit.prompts import Message, grit_turns
from gritkit.tokens import check_text

Kind = Literal["embedding", "generative"]


class Text(NamedTuple):
    """A text to embed and, where it has one, the instruction that says what its vector is for."""

    instruction: str | None
    text: str

    @staticmethod
    def of(value: Any, what: str = "text") -> Text:
        """From ``"text"`` or ``[instruction, "text"]``. Raises RecordError for anything else and for an empty text."""
        if isinstance(value, str):
            instruction, text = "", value
        elif isinstance(value, (list, tuple)) and len(value) == 2:
            instruction, text = "" if value[0] is None else value[0], value[1]
        else:
            raise RecordError(f"{what} is neither a string nor [instruction, text]: {value!r:.80}")
        try:
            check_text(text, what)
            # The characters that the original GRIT code strips, so that its data sets give the same prompts.
            instruction = check_text(instruction, f"the instruction of {what}").strip("\t\n :")
        except InputError as error:
            raise RecordError(str(error)) from None
        if not text.strip():
            raise RecordError(f"{what} is empty")
        return Text(instruction or None, text)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRecord:
    """A query, what it should be close to, and what it should be far from."""

    query: Text
    pos: tuple[Text, ...]
    neg: tuple[Text, ...] = ()
    answer: str | None = None
    """What the query, as a question about the passages, is answered with."""
    query_id: str | None = None
    pos_ids: tuple[str, ...] | None = None
    """One for each positive. A record names all its passages or none: a text would count as two otherwise."""
    neg_ids: tuple[str, ...] | None = None
    pos_scores: tuple[float, ...] | None = None
    """A teacher's score of each positive; kept for losses that distil."""
    neg_scores: tuple[float, ...] | None = None
    task: str | None = None
    label: str | int | None = None

    @staticmethod
    def of(query: Any, pos: Iterable[Any], neg: Iterable[Any] = (), **rest: Any) -> EmbeddingRecord:
        """From strings or [instruction, text] pairs; ids as strings or integers.

        Raises RecordError for an empty text, no positive, or ids that do not match the texts.
        """
        positives = tuple(Text.of(value, f"pos[{i}]") for i, value in enumerate(_listed(pos, "pos")))
        negatives = tuple(Text.of(value, f"neg[{i}]") for i, value in enumerate(_listed(neg, "neg")))
        if not positives:
            raise RecordError("pos is empty: a query needs a text to be close to")
        if rest.get("answer") is not None:
            _worded(rest["answer"], "answer")
        if rest.get("query_id") is not None:
            rest["query_id"] = _id(rest["query_id"], "query_id")
        for column, texts in (("pos_ids", positives), ("neg_ids", negatives)):
            if rest.get(column) is not None:
                rest[column] = _ids(rest[column], column, len(texts))
        if negatives and (rest.get("pos_ids") is None) != (rest.get("neg_ids") is None):
            lacking = "pos_ids" if rest.get("pos_ids") is None else "neg_ids"
            raise RecordError(f"some passages have ids and others have none: add {lacking}, or remove the others")
        return EmbeddingRecord(query=Text.of(query, "query"), pos=positives, neg=negatives, **rest)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerativeRecord:
    """A conversation whose answers are trained on, or a raw text all of which is."""

    messages: tuple[Message, ...] = ()
    text: str | None = None

    def __post_init__(self) -> None:
        if bool(self.messages) == (self.text is not None):
            raise RecordError("a generative record has either messages or a text")

    @staticmethod
    def of(content: Any) -> GenerativeRecord:
        """From a raw string, a list [user, assistant, ...] or a list of messages. Raises RecordError."""
        if isinstance(content, str):
            _worded(content, "text")
            return GenerativeRecord(text=content)
        if not isinstance(content, (list, tuple)) or not content:
            raise RecordError(f"text is neither a string nor a list of turns: {content!r:.80}")
        if all(isinstance(part, str) for part in content):
            content = [{"role": "assistant" if i % 2 else "user", "content": part} for i, part in enumerate(content)]
        return GenerativeRecord(messages=_conversation(content))


Record = EmbeddingRecord | GenerativeRecord


def kind_of(record: Record) -> Kind:
    return "embedding" if isinstance(record, EmbeddingRecord) else "generative"


def parse_record(row: Any) -> Record:
    """A JSON object -> its record; the columns say which kind. Raises RecordError with what is wrong, without a
    place."""
    if not isinstance(row, Mapping):
        raise RecordError(f"the record is {type(row).__name__}, not an object: {row!r:.80}")
    if row.get("query") is not None or row.get("pos") is not None:
        return _embedding(row)
    for column in ("messages", "text"):
        if row.get(column) is not None:
            if column == "messages" and isinstance(row[column], str):
                raise RecordError(f"messages is a string, not a list of messages: {row[column]!r:.80}")
            return GenerativeRecord.of(row[column])
    if row.get("instruction") is not None and row.get("output") is not None:
        return GenerativeRecord.of(_alpaca_turns(row))
    columns = ", ".join(str(name) for name in list(row)[:8]) or "none"
    raise RecordError(
        "the record has neither query and pos, nor text, nor messages, nor instruction and output "
        f"(its columns: {columns})"
    )


def _alpaca_turns(row: Mapping[str, Any]) -> list[str]:
    """The user's turn, instruction and input with an empty line between, and the answer."""
    asked = [row["instruction"], row.get("input") or ""]
    if not all(isinstance(part, str) for part in (*asked, row["output"])):
        raise RecordError(f"instruction, input and output must be strings: {dict(row)!r:.80}")
    return ["\n\n".join(part for part in asked if part.strip()), row["output"]]


def _embedding(row: Mapping[str, Any]) -> EmbeddingRecord:
    for column in ("query", "pos"):
        if row.get(column) is None:
            raise RecordError(f"the record has no {column}")
    scores = {}
    for column, texts in (("pos_scores", row["pos"]), ("neg_scores", row.get("neg") or ())):
        if row.get(column) is not None:
            values, texts = _listed(row[column], column), _listed(texts, column.removesuffix("_scores"))
            if len(values) != len(texts) or not all(isinstance(v, (int, float)) for v in values):
                raise RecordError(f"{column} needs one number for each of the {len(texts)} texts: {values!r:.80}")
            scores[column] = tuple(float(v) for v in values)
    names = ("answer", "query_id", "pos_ids", "neg_ids", "label")
    rest: dict[str, Any] = {**scores, **{name: row.get(name) for name in names}}
    if isinstance(row.get("task"), str):
        rest["task"] = row["task"]
    return EmbeddingRecord.of(row["query"], row["pos"], row.get("neg") or (), **rest)


def _conversation(messages: Sequence[Any]) -> tuple[Message, ...]:
    try:
        turns = grit_turns(messages)
        for number, (user, answer) in enumerate(turns):
            check_text(user, f"turn {number}")
            check_text(answer or "", f"turn {number}")
    except InputError as error:
        raise RecordError(str(error)) from None
    if turns[-1][1] is None:
        raise RecordError(f"the last of the {len(messages)} turns is the user's: there is no answer to train on")
    for number, (user, answer) in enumerate(turns):
        _worded(user, f"the user's text of turn {number}")
        _worded(answer, f"the answer of turn {number}")
    return tuple({"role": message["role"], "content": message["content"]} for message in messages)


def _listed(values: Any, what: str) -> Sequence[Any]:
    if not isinstance(values, (list, tuple)):
        raise RecordError(f"{what} is {type(values).__name__}, not a list: {values!r:.80}")
    return values


def _id(value: Any, what: str) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise RecordError(f"{what} is neither a string nor an integer: {value!r:.80}")
    try:
        return check_text(str(value), what)
    except InputError as error:
        raise RecordError(str(error)) from None


def _ids(values: Any, what: str, count: int) -> tuple[str, ...] | None:
    ids = tuple(_id(value, f"{what}[{i}]") for i, value in enumerate(_listed(values, what)))
    if len(ids) != count:
        raise RecordError(f"{what} needs one id for each of the {count} texts: {values!r:.80}")
    return ids or None


def _worded(text: str | None, what: str) -> None:
    try:
        if not check_text(text, what).strip():
            raise RecordError(f"{what} is empty")
    except InputError as error:
        raise RecordError(str(error)) from None
