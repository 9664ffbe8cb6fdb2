"""``/v1/completions``: raw prompts and what continues them.

The forms are those of the OpenAI API.

This module knows nothing about prompts, engines or stores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from gritkit_serve.schemas.common import ModelField, Refused, Reply, Usage, Whole, above
from gritkit_serve.schemas.inputs import IdsField, TextOrIds, check_items, items_of
from gritkit_serve.schemas.sampling import FinishReason, Sampling
from gritkit_serve.settings import Settings


class CompletionRequest(ModelField, IdsField, Sampling):
    """What is to be continued."""

    prompt: TextOrIds
    max_tokens: Annotated[Whole, Field(ge=1)] | None = Field(
        None,
        description="Tokens of the answer; 16 by default, as in the OpenAI API, or fewer if this server is so set.",
    )
    logprobs: Annotated[Whole, Field(ge=0)] | None = Field(
        None, description="Send the log-probability of every token, and so many of the likeliest at its place."
    )
    best_of: Annotated[Any, Refused("use n and choose", 1)] = None
    echo: Annotated[Any, Refused("put the prompt before the answer", False)] = None
    suffix: Annotated[Any, Refused("this model does not fill gaps", "")] = None

    def check(self, settings: Settings) -> None:
        """Raises ParameterError for fields that contradict each other or pass a limit of this server."""
        super().check(settings)
        if (self.logprobs or 0) > settings.max_top_logprobs:
            raise above("logprobs", self.logprobs, settings.max_top_logprobs)
        check_items(self.items, self.token_ids, "prompt", settings)

    @property
    def items(self) -> Sequence[str | list[int]]:
        """The prompts."""
        return items_of(self.prompt)


class CompletionLogprobs(Reply):
    """The tokens of an answer or of a chunk, in lists of equal length."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] = Field(description="The likeliest tokens, and the one that was taken.")
    text_offset: list[int] = Field(description="Where each token begins in the answer's text.")


class CompletionChoice(Reply):
    """One answer; prompt p's answer i of n has the index p * n + i."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None = Field(description="Null in all chunks of a stream but an answer's last.")


class Completion(Reply):
    """Answers to prompts; in a stream, what a chunk adds to them."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
