"""What goes into a knowledge base and what comes out of it: documents, hits, answers and the events of a stream.

This module knows nothing about models, stores or files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gritkit.errors import InputError
from gritkit.generation.params import Delta, FinishReason, Usage
from gritkit.tokens import check_text

Reuse = Literal["prefix", "cached", "linked", "off", "query", "query_doc", "doc_query"]
"""How an answer came by its documents.

``prefix``: from the key-values of exactly this beginning of the prompt; ``cached``: from those that each document had
on its own; ``linked``: the same, with the first tokens of every document but the first computed again where they
stand; ``off``: by reading them in the prompt. The other three are those of the GRIT paper (Muennighoff et al. 2024,
arXiv 2402.09906, section 5), for its table: the key-values of the query's embedding before a document that is read,
before the document's, or after them.
"""

Search = Literal["dense", "text", "hybrid"]
"""By vectors, by words (full-text search), or by both, fused by rank."""


@dataclass(frozen=True)
class Document:
    """A text to find and to answer from. Raises InputError for what cannot be stored."""

    text: str
    id: str = None  # type: ignore[assignment]  # there after construction
    """Unique in a knowledge base: a document under a known id replaces that one. By default a digest of the text."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Anything that JSON can hold; ``where=`` finds documents by its first level."""
    kind: str = "text"
    """What structure a long text is cut by: "markdown", "html", "docx" have headings, "code:python" indentation."""

    def __post_init__(self) -> None:
        if self.id is None:
            digest = hashlib.blake2b(check_text(self.text, "a document").encode(), digest_size=16)
            object.__setattr__(self, "id", digest.hexdigest())
        if not check_text(self.id, "a document's id"):
            raise InputError("a document's id is empty: leave it out to get a digest of the text")
        check_text(self.text, f"document {self.id!r}")
        if not isinstance(self.kind, str):
            raise InputError(f"the kind of document {self.id!r} is {type(self.kind).__name__}, not text")
        if not isinstance(self.metadata, Mapping) or not all(isinstance(key, str) for key in self.metadata):
            raise InputError(f"the metadata of document {self.id!r} is not a dict with text as keys")
        try:
            check_text(to_json(dict(self.metadata)), "the metadata")
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"the metadata of document {self.id!r} cannot be written as JSON: {error}") from None


@dataclass(frozen=True)
class DocumentInfo:
    """A document of a knowledge base without its text."""

    id: str
    metadata: dict[str, Any]
    chunks: int


@dataclass(frozen=True)
class Hit:
    """A chunk that was found. Higher scores are better: the cosine similarity with the query of a dense search, the
    database's own of a text search, summed reciprocal ranks of a hybrid one, the query's likelihood when reranked."""

    id: str
    """Of the document."""
    text: str
    score: float
    metadata: dict[str, Any]
    """The document's, and as ``section`` the headings that the chunk stands under."""
    chunk: int = 0
    """Which chunk of the document it is, from 0."""


@dataclass(frozen=True)
class AddReport:
    """What became of the documents that were added; skipped ones were there already, word for word."""

    added: int = 0
    updated: int = 0
    skipped: int = 0
    failed: int = 0
    """Handed to ``on_error``; without it the first one raises."""
    chunks: int = 0
    """Chunks that were read."""


@dataclass(frozen=True)
class Timings:
    """Seconds of one answer, the time that a reader of the stream took left out."""

    search: float
    """Embedding the question and finding the documents."""
    load: float
    """Fetching their key-values, damaged ones computed again."""
    first_token: float
    """From the call to the first token of the answer: search and load included."""
    total: float
    """From the call to the last token."""


@dataclass(frozen=True)
class Answer:
    """An answer and what it stands on."""

    text: str
    sources: list[Hit]
    """The chunks that the model read, best first. In the prompt the best stands last, next to the question."""
    reuse: Reuse
    """Which way was really taken."""
    reason: str
    """Why this way: what was asked for, or what ``auto`` went by."""
    timings: Timings
    usage: Usage
    """``cached_tokens`` of ``prompt_tokens`` were not computed for this answer."""
    finish_reason: FinishReason
    dropped: list[Hit]
    """Documents that were found but had no room in the context, best first."""
    recomputed: int
    """Sources whose key-values were missing or damaged, and were computed again."""


@dataclass(frozen=True)
class Sources:
    """The first event of a stream: the documents that the answer will read, best first."""

    sources: list[Hit]
    dropped: list[Hit]


RagEvent = Sources | Delta | Answer
"""A stream is Sources, then Deltas whose texts join to the answer, then the Answer."""


def to_json(value: Any) -> str:
    """JSON that is the same for equal values. Raises TypeError or ValueError for what JSON has no form for."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)


def tags_of(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """One text per first-level entry, equal for equal entries; a filter asks for it. Plain ASCII."""
    return tuple(
        json.dumps([key, _number(value)], sort_keys=True, allow_nan=False) for key, value in sorted(metadata.items())
    )


def tags_to_find(where: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The tags that a document must have. Raises InputError for a filter that is none."""
    if where is None:
        return ()
    if not isinstance(where, Mapping) or not all(isinstance(key, str) for key in where):
        raise InputError(f"where={where!r:.80} must be a dict of metadata keys and the values they must have")
    try:
        return tags_of(where)
    except (TypeError, ValueError) as error:
        raise InputError(f"where={where!r:.80} has a value that metadata cannot have: {error}") from None


def _number(value: Any) -> Any:
    """2020.0 finds 2020, as they are equal; True is not 1 here, unlike in Python."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
