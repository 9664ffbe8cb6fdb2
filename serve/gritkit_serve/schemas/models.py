"""``/v1/models``: the base model and its adapters.

This module knows nothing about checkpoints.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gritkit_serve.schemas.common import Reply


class ModelFacts(Reply):
    """What requests to a model must keep to."""

    writes: bool = Field(description="Whether it generates; one that does not has embeddings alone.")
    context_length: int = Field(description="Tokens of prompt and answer together.")
    dim: int = Field(description="Size of a full vector.")
    matryoshka_dims: list[int] = Field(description="Sizes that its vectors were trained to be cut to.")
    max_embedding_tokens: int = Field(description="Tokens of one text to embed.")
    prompt_format: str


class ModelCard(Reply):
    """A model that requests can name."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="When this server loaded it, in seconds since 1970.")
    owned_by: Literal["gritkit"] = "gritkit"
    parent: str | None = Field(description="Of an adapter: the base model.")
    gritkit: ModelFacts


class ModelList(Reply):
    """All of them, the base model first."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
