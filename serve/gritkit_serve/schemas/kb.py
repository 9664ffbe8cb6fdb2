"""``/v1/kb``: knowledge bases, their documents, searches in them and answers from them.

This module knows nothing about stores, models or files.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from gritkit.generation.params import SamplingParams
from gritkit.kv.dockv import Join
from gritkit.rag.documents import Document, Reuse, Search
from gritkit_serve.errors import ParameterError
from gritkit_serve.schemas.common import Body, Reply, Text, Usage, Whole, above, is_none
from gritkit_serve.schemas.errors import ERRORS, ErrorResponse
from gritkit_serve.schemas.sampling import Stop, check_stop
from gritkit_serve.settings import Settings

NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
"""Of a knowledge base: also the name of its folder, and nothing that a file system or a shell takes for more."""
MAX_ID_CHARS = 512
MAX_METADATA_BYTES = 16 << 10
"""As JSON; every chunk of a document carries it."""
MAX_CONDITIONS = 32
MAX_ERRORS = 1000
"""Of one addition that are named; all are counted."""
MAX_QUESTION_CHARS = 64 << 10
MAX_LINK_TOKENS = 1024


def _short_json(value: dict[str, Any]) -> dict[str, Any]:
    try:
        size = len(json.dumps(value, allow_nan=False).encode("ascii"))
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if size > MAX_METADATA_BYTES:
        raise ValueError(f"must be at most {MAX_METADATA_BYTES} bytes as JSON, and is {size}")
    return value


Name = Annotated[Text, Field(pattern=NAME)]
DocumentId = Annotated[Text, Field(min_length=1, max_length=MAX_ID_CHARS)]
Metadata = Annotated[dict[Text, Any], AfterValidator(_short_json)]
Where = Annotated[dict[Text, Any], Field(max_length=MAX_CONDITIONS), AfterValidator(_short_json)]
Asked = Annotated[Text, Field(min_length=1, max_length=MAX_QUESTION_CHARS)]


# -- requests ------------------------------------------------------------------------------------------------------


class NewBase(Body):
    """A knowledge base to be made."""

    name: Name
    chunk_tokens: Annotated[Whole, Field(ge=1)] | None = Field(
        default=None,
        description="Longest chunk of a document, its prompt included; by default 512, or what the model holds.",
    )
    chunk_overlap: Annotated[Whole, Field(ge=0)] | None = Field(
        default=None, description="Tokens that neighbouring chunks share at most."
    )
    codec: Literal["exact", "bf16", "int8", "int4"] | None = Field(
        default=None, description="How the documents' key-values are kept; int8 by default."
    )
    instruction: Annotated[Text, Field(min_length=1, max_length=4096)] | None = Field(
        default=None, description="What queries are embedded with, for models that were trained so; documents get none."
    )


class NewDocument(Body):
    """A document to be added."""

    text: Text
    id: DocumentId | None = Field(
        default=None,
        description="Unique: a document under a known id takes its place. By default a digest of the text.",
    )
    metadata: Metadata | None = Field(
        default=None, description="What searches can ask for by its first level, with where."
    )
    kind: Annotated[Text, Field(max_length=64)] | None = Field(
        default=None,
        description="Structure of a long text: text, markdown, html, docx, pdf, or code:python and the like.",
    )

    def document(self) -> Document:
        """Raises InputError for what cannot be stored."""
        return Document(self.text, self.id, self.metadata or {}, self.kind or "text")  # type: ignore[arg-type]


class NewDocuments(Body):
    """Documents to be added, and unchanged ones to be passed over."""

    documents: Annotated[list[NewDocument], Field(min_length=1, fail_fast=True)]

    def check(self, settings: Settings) -> None:
        """Raises ParameterError for more of them than this server takes at once."""
        check_count(len(self.documents), "documents", settings)


class DocumentIds(Body):
    """Documents to be deleted."""

    ids: Annotated[list[DocumentId], Field(min_length=1, fail_fast=True)]

    def check(self, settings: Settings) -> None:
        """Raises ParameterError for more of them than this server takes at once."""
        check_count(len(self.ids), "ids", settings)


def check_count(count: int, what: str, settings: Settings) -> None:
    """Raises ParameterError for more documents than this server takes at once."""
    if count > settings.max_documents:
        raise ParameterError(f"{what} has {count} items: send at most {settings.max_documents} at once", param=what)


class Retrieval(Body):
    """What is to be found."""

    top_k: Annotated[Whole, Field(ge=1)] | None = Field(
        default=None, description="Chunks; 10 of a search, 3 for an answer."
    )
    where: Where | None = Field(default=None, description="Only documents whose metadata has all of these entries.")
    by: Search | None = Field(
        default=None, description="By vectors (dense, the default), words (text), or both (hybrid)."
    )
    rerank: bool | None = Field(
        default=None, description="Find four times as many, and keep those that make the query likeliest."
    )

    def check(self, settings: Settings) -> None:
        """Raises ParameterError for a number above a limit of this server."""
        if (self.top_k or 0) > settings.max_top_k:
            raise above("top_k", self.top_k, settings.max_top_k)

    def options(self) -> dict[str, Any]:
        """As gritkit.rag takes them; what was left out is left to it."""
        return given(top_k=self.top_k, where=self.where, by=self.by, rerank=self.rerank)


class SearchRequest(Retrieval):
    """A search."""

    query: Asked


class Answering(Retrieval):
    """What an answer reads, and how it comes by it."""

    reuse: Literal["auto"] | Reuse | None = Field(
        default=None,
        description="Where the documents' key-values come from: prefix (of this beginning of a prompt), cached (of "
        "each document), linked (cached, with the first tokens of each computed again), off (computed now); auto, "
        "the default, decides. query, query_doc and doc_query are those of the GRIT paper.",
    )
    join: Join | None = Field(
        default=None, description="What all documents but the first leave out; by default what was measured to be best."
    )
    link_tokens: Annotated[Whole, Field(ge=1, le=MAX_LINK_TOKENS)] | None = Field(
        default=None, description="With reuse=linked: how many tokens of each document are computed again."
    )


class AskRequest(Answering):
    """A question."""

    question: Asked
    stream: bool | None = Field(default=None, description="Send sources, text and answer as server-sent events.")
    max_tokens: Annotated[Whole, Field(ge=1)] | None = Field(
        default=None, description="Tokens of the answer; 256 by default, or fewer if this server is so set."
    )
    temperature: Annotated[float, Field(ge=0, le=100)] | None = Field(
        default=None, description="0, the default, takes the likeliest token."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    stop: Stop | None = Field(default=None, description="Texts that end the answer; they are not part of it.")
    seed: Annotated[Whole, Field(ge=-(2**63), lt=2**63)] | None = Field(
        default=None, description="Makes a sampled answer repeatable."
    )

    def check(self, settings: Settings) -> None:
        """Raises ParameterError for what passes a limit of this server."""
        super().check(settings)
        check_stop(self.stop, settings)

    def params(self, max_new_tokens: int) -> SamplingParams:
        """What was left out is as in :meth:`gritkit.rag.Rag.ask`, but for ``max_new_tokens``.

        Raises InputError for a value outside its range.
        """
        return SamplingParams(
            **given(
                max_new_tokens=self.max_tokens or max_new_tokens, temperature=self.temperature, top_p=self.top_p,
                min_p=self.min_p, repetition_penalty=self.repetition_penalty, stop=self.stop, seed=self.seed,
            )
        )  # fmt: skip


class ChatKb(Answering):
    """The ``kb`` of a chat: the last message of the user is the question."""

    name: Text


def given(**fields: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


# -- responses -----------------------------------------------------------------------------------------------------

KB_ERRORS: dict[int | str, dict[str, Any]] = {
    **ERRORS,
    409: {"model": ErrorResponse, "description": "It is there already, in use by another process, or unusable."},
    501: {"model": ErrorResponse, "description": "The server lacks a package for this; the message names it."},
    502: {"model": ErrorResponse, "description": "The replica that worked on this change has ended; send it again."},
    507: {"model": ErrorResponse, "description": "The server's disk refuses."},
}
"""For ``responses=`` of a route."""
FIXED: dict[int | str, dict[str, Any]] = {
    403: {
        "model": ErrorResponse,
        "description": f"{ERRORS[403]['description']} Started with a single knowledge base, it makes and deletes none.",
    }
}
"""The same of a route that makes or deletes knowledge bases."""


class BaseInfo(Reply):
    """A knowledge base."""

    name: str
    object: Literal["kb"] = "kb"
    documents: int
    chunks: int
    bytes: int = Field(description="On disk, key-values included.")
    block_bytes: int = Field(description="Of key-values.")
    codec: str | None = Field(description="Of key-values; this and what follows is null where it cannot be read.")
    chunk_tokens: int | None
    chunk_overlap: int | None
    dim: int | None = Field(description="Of its vectors.")
    prompt_format: str | None
    instruction: str | None = Field(description="What queries are embedded with.")
    problem: str | None = Field(
        default=None,
        exclude_if=is_none,
        description="Why it cannot be used now: another model made it, or it is damaged.",
    )


class BaseList(Reply):
    """All of them by name."""

    object: Literal["list"] = "list"
    data: list[BaseInfo]
    fixed: bool = Field(
        description="Whether none can be made or deleted: the server was started with one alone, or without any."
    )


class Deleted(Reply):
    """A knowledge base that is gone."""

    name: str
    object: Literal["kb.deleted"] = "kb.deleted"
    deleted: Literal[True] = True


class DeletedDocuments(Reply):
    """How many there were."""

    deleted: int


class StoredDocument(Reply):
    """A document without its text."""

    id: str
    metadata: dict[str, Any]
    chunks: int


class DocumentList(Reply):
    """A page of documents, by id."""

    object: Literal["list"] = "list"
    data: list[StoredDocument]
    has_more: bool = Field(description="Whether there are others: ask again with after=ID, the last id of this page.")


class NotTaken(Reply):
    """A document that could not be added."""

    id: str = Field(description="As it was given: an id, the name of a file, a line of it, or documents[N].")
    reason: str


class AddReply(Reply):
    """What became of documents. Those counted as added, updated and skipped are on disk."""

    added: int
    updated: int
    skipped: int = Field(description="They were there already, word for word.")
    failed: int
    chunks: int = Field(description="Chunks that were read.")
    errors: list[NotTaken] = Field(description="At most 1,000 of the failed ones.")


class Progress(Reply):
    """How far an addition has come: so many of its documents are on disk, or have failed."""

    documents_done: int
    documents_total: int


class Passage(Reply):
    """A chunk that was found."""

    id: str = Field(description="Of the document.")
    chunk: int = Field(description="Which chunk of the document it is, from 0.")
    text: str
    score: float = Field(description="Higher is better.")
    metadata: dict[str, Any]


class SearchReply(Reply):
    """What was found, best first."""

    object: Literal["list"] = "list"
    data: list[Passage]


class Timings(Reply):
    """Milliseconds."""

    search: float = Field(description="Embedding the question and finding documents.")
    load: float = Field(description="Fetching their key-values, damaged ones computed again.")
    first_token: float = Field(description="From the request to the first piece of the answer.")
    total: float


class SourcesEvent(Reply):
    """The first event of an answer that streams."""

    sources: list[Passage] = Field(description="What the model reads, best first.")
    dropped: list[Passage] = Field(description="Found, and without room in the context.")


class DeltaEvent(Reply):
    """The next piece of the answer."""

    text: str


class AskReply(SourcesEvent):
    """An answer and what it stands on; the last event of one that streams."""

    text: str
    reuse: Reuse = Field(description="Where the documents' key-values came from.")
    reason: str
    recomputed: int = Field(description="Sources whose key-values were missing or damaged, and were computed again.")
    timings: Timings
    usage: Usage
    finish_reason: Literal["stop", "length"]


class ChatSources(Reply):
    """What a chat's answer from a knowledge base stands on. In a stream the first chunk has the sources, the last one
    the rest."""

    sources: list[Passage] | None = Field(default=None, exclude_if=is_none)
    dropped: list[Passage] | None = Field(default=None, exclude_if=is_none)
    reuse: Reuse | None = Field(default=None, exclude_if=is_none)
    reason: str | None = Field(default=None, exclude_if=is_none)
    recomputed: int | None = Field(default=None, exclude_if=is_none)
    timings: Timings | None = Field(default=None, exclude_if=is_none)
