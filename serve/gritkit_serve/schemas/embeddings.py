"""``/v1/embeddings``: texts in, vectors out.

The forms are those of the OpenAI API, with its clients' default encoding (base64 of little-endian float32). Token ids
are those of a text alone: its instruction and format are put around them as around a text.

This module knows nothing about tokenizers or engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, get_args

from pydantic import Field

from gritkit.prompts import TASKS, Role
from gritkit_serve.errors import ParameterError
from gritkit_serve.schemas.common import InputUsage, ModelField, Reply, Text, Whole, WithoutEffect, is_none
from gritkit_serve.schemas.inputs import IdsField, TextOrIds, check_items, items_of
from gritkit_serve.settings import Settings

Task = Literal["retrieval", "similarity", "classification", "clustering"]
assert set(get_args(Task)) == set(TASKS)


class EmbeddingRequest(ModelField, IdsField, WithoutEffect):
    """Texts to embed."""

    input: TextOrIds
    encoding_format: Literal["float", "base64"] | None = Field(
        None,
        description="float by default; base64 is that of little-endian float32.",
    )
    dimensions: Annotated[Whole, Field(ge=1)] | None = Field(
        None, description="Keep the first dimensions and normalise again."
    )
    input_type: Literal["query", "passage"] | None = Field(
        None, description="Extension: what the texts are; passages by default."
    )
    instruction: Annotated[Text, Field(min_length=1)] | None = Field(
        None, description="Extension: what the vectors are for; read, but not part of the mean."
    )
    task: Task | None = Field(
        None, description="Extension: a built-in instruction. retrieval needs input_type; the others have one side."
    )
    truncate: bool | None = Field(
        None, description="Extension: cut texts that are too long; by default they are refused."
    )

    def check(self, settings: Settings) -> None:
        """Raises ParameterError for fields that contradict each other or pass a limit of this server."""
        check_items(self.items, self.token_ids, "input", settings)
        if self.task is None:
            return
        if self.instruction is not None:
            raise ParameterError("task and instruction are two instructions: give one of them", param="task")
        if TASKS[self.task].two_sided and self.input_type is None:
            raise ParameterError(f"task={self.task!r} needs input_type 'query' or 'passage'", param="input_type")
        if not TASKS[self.task].two_sided and self.input_type is not None:
            raise ParameterError(f"task={self.task!r} embeds all texts alike: leave input_type out", param="input_type")

    @property
    def items(self) -> Sequence[str | list[int]]:
        """The texts."""
        return items_of(self.input)

    @property
    def side(self) -> tuple[Role, str | None]:
        """What the texts are embedded as, and for what."""
        if self.task is None:
            return self.input_type or "passage", self.instruction
        task = TASKS[self.task]
        role = self.input_type or "query"
        return role, task.instruction if role == "query" else None


class Embedding(Reply):
    """One vector."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingNotes(Reply):
    """What a caller should know about the vectors."""

    notes: list[str]


class EmbeddingResponse(Reply):
    """Vectors in the order of the texts."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: InputUsage
    gritkit: EmbeddingNotes | None = Field(
        None, exclude_if=is_none, description="Only where there is something to note."
    )
