"""Records of evaluation data: what a line must hold, one function for each layout.

The layouts stand in ``gritkit_eval.mteb.files``. Each function takes a JSON object and raises a RecordError, which
names the field and its value, for one that is not of its layout.

This module knows nothing about files or mteb.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gritkit.errors import RecordError

Row = Mapping[str, Any]


def pair_record(row: Row) -> dict[str, str]:
    """Two texts."""
    return {"sentence1": _field(row, "sentence1", "premise"), "sentence2": _field(row, "sentence2", "hypothesis")}


def scored_record(row: Row) -> dict[str, Any]:
    """Two texts and how alike they are."""
    return {**pair_record(row), "score": _number(row.get("score"), "'score'")}


def judged_record(row: Row) -> dict[str, Any]:
    """Two texts, and whether they belong together (0 or 1)."""
    label = _label(row)
    if label not in (0, 1):
        raise RecordError(f"'label' must be 0 or 1, not {label!r}")
    return {**pair_record(row), "label": label}


def bitext_record(row: Row) -> tuple[str, dict[str, str]]:
    """The language, "" where none is given, and a sentence with its translation."""
    return (_field(row, "lang") if "lang" in row else ""), pair_record(row)


def query_record(row: Row) -> tuple[str, str]:
    """Id, text."""
    return _id(row, "_id", "id"), _field(row, "text")


def example_record(row: Row) -> dict[str, Any]:
    """A text and its class: a text or a whole number."""
    return {"text": _field(row, "text"), "label": _label(row)}


def summaries_record(row: Row) -> dict[str, Any]:
    """A text, summaries of it by people and by machines, and how good each of a machine's is."""
    machine, relevance = _texts(row, "machine_summaries"), _numbers(row, "relevance")
    if len(machine) != len(relevance):
        raise RecordError(f"{len(machine)} machine_summaries but {len(relevance)} of relevance")
    return {
        "text": _field(row, "text"), "human_summaries": _texts(row, "human_summaries"), "machine_summaries": machine,
        "relevance": relevance,
    }  # fmt: skip


def candidates_record(row: Row) -> dict[str, Any]:
    """A query, and the texts among which the right ones are to be found."""
    positive, negative = _texts(row, "positive"), _texts(row, "negative")
    both = set(positive) & set(negative)
    if both:
        raise RecordError(f"a text is both positive and negative: {min(both)!r:.60}")
    return {"query": _field(row, "query"), "positive": positive, "negative": negative}


def document_record(row: Row) -> tuple[str, dict[str, str]]:
    """Id, and title and text; either may be empty, as in collections whose older documents are titles alone."""
    title = _field(row, "title", empty=True) if row.get("title") is not None else ""
    return _id(row, "_id", "id"), {"title": title, "text": _field(row, "text", empty=True)}


def judgement_record(row: Row) -> tuple[str, str, int]:
    """Query, document, grade: a whole number, as trec_eval's are."""
    grade = _number(row.get("score"), "'score'")
    if grade != int(grade):
        raise RecordError(f"'score' must be a whole number, not {grade}")
    return _id(row, "query_id", "query-id"), _id(row, "corpus_id", "corpus-id"), int(grade)


# -- fields ----------------------------------------------------------------------------------------------------------


def _field(row: Row, *names: str, empty: bool = False) -> str:
    """The text under the first of ``names`` that there is. ``empty`` allows one without words."""
    name = next((name for name in names if name in row), None)
    if name is None:
        raise RecordError(f"no field {' or '.join(map(repr, names))}; there are {', '.join(row) or 'none'}")
    return _text(row[name], repr(name), empty=empty)


def _texts(row: Row, name: str) -> list[str]:
    return [_text(one, f"{name}[{place}]") for place, one in enumerate(_items(row, name, "texts"))]


def _numbers(row: Row, name: str) -> list[float]:
    return [_number(one, f"{name}[{place}]") for place, one in enumerate(_items(row, name, "numbers"))]


def _items(row: Row, name: str, what: str) -> Sequence[Any]:
    value = row.get(name)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise RecordError(f"{name!r} must be a list of {what}, not {value!r:.60}")
    return value


def _label(row: Row) -> str | int:
    value = row.get("label")
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int) or (isinstance(value, str) and value.strip()):
        return value
    raise RecordError(f"'label' must be a text or a whole number, not {value!r:.60}")


def _id(row: Row, *names: str) -> str:
    """As a text; whole numbers are ids too."""
    name = next((name for name in names if name in row), names[0])
    value = row.get(name)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _field(row, *names)


def _text(value: Any, name: str, *, empty: bool = False) -> str:
    if not isinstance(value, str):
        raise RecordError(f"{name} must be a text, not {value!r:.60}")
    if not empty and not value.strip():
        raise RecordError(f"{name} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RecordError(f"{name} holds half of a surrogate pair, which is no character") from None
    return value


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RecordError(f"{name} must be a finite number, not {value!r:.60}")
    return float(value)
