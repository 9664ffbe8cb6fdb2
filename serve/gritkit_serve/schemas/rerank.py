"""``/v1/rerank``: a query and documents in, their order out.

The forms are those that Cohere and Jina share.

This module knows nothing about tokenizers or engines.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gritkit_serve.errors import ParameterError
from gritkit_serve.schemas.common import (
    Body,
    InputUsage,
    ModelField,
    Reply,
    Text,
    Whole,
    WithoutEffect,
    either,
    is_none,
)
from gritkit_serve.settings import Settings


class DocumentText(Body):
    """A document as an object."""

    text: Text


class RerankRequest(ModelField, WithoutEffect):
    """What is to be ordered."""

    query: Text
    documents: Annotated[
        list[Annotated[Text | DocumentText, either('a text or {"text": ...}')]], Field(min_length=1, fail_fast=True)
    ]
    top_n: Annotated[Whole, Field(ge=1)] | None = Field(None, description="Return only the best.")
    return_documents: bool | None = Field(None, description="Repeat the documents in the results.")
    max_tokens_per_doc: Annotated[Whole, Field(ge=1)] | None = Field(
        None, description="Cut every document after so many tokens."
    )
    method: Literal["likelihood", "embedding"] | None = Field(
        None,
        description="Extension: likelihood is the mean probability of the query's tokens given the document (the "
        "default where the model writes), embedding the cosine similarity of their vectors.",
    )
    instruction: Annotated[Text, Field(min_length=1)] | None = Field(
        None, description="Extension, with method=embedding: what the query is embedded for."
    )
    truncate: bool | None = Field(
        None, description="Extension: cut documents that do not fit the context; by default they are refused."
    )

    def check(self, settings: Settings) -> None:
        """Raises ParameterError for fields that contradict each other or pass a limit of this server."""
        if len(self.documents) > settings.max_documents:
            raise ParameterError(
                f"documents has {len(self.documents)} items: send at most {settings.max_documents}", param="documents"
            )
        if self.instruction is not None and self.method != "embedding":
            raise ParameterError("instruction needs method='embedding'", param="instruction")

    def texts(self) -> list[str]:
        """The documents."""
        return [document if isinstance(document, str) else document.text for document in self.documents]


class RerankResult(Reply):
    """One document's place."""

    index: int = Field(description="Its place in the request, from 0.")
    relevance_score: float
    document: DocumentText | None = Field(None, exclude_if=is_none, description="With return_documents alone.")


class RerankResponse(Reply):
    """Documents, best first; equal scores keep their order."""

    id: str
    model: str
    results: list[RerankResult]
    usage: InputUsage
