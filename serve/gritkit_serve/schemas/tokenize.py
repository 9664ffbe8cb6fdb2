"""``/tokenize`` and ``/detokenize``: between text and this server's token ids.

This module knows nothing about tokenizers.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gritkit_serve.errors import ParameterError
from gritkit_serve.schemas.chat import ChatMessage, check_messages
from gritkit_serve.schemas.common import ModelField, Reply, Text
from gritkit_serve.schemas.inputs import Ids
from gritkit_serve.settings import Settings


class TokenizeRequest(ModelField):
    """A text, or a conversation."""

    text: Text | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)] | None = Field(
        None, description="A conversation, up to where the assistant is to speak."
    )
    add_special_tokens: bool | None = Field(
        None, description="With text: put the tokenizer's beginning before it, as /v1/completions does (the default)."
    )

    def check(self, settings: Settings) -> None:
        """Raises ParameterError for fields that contradict each other or pass a limit of this server."""
        if (self.text is None) == (self.messages is None):
            raise ParameterError("give either text or messages", param="text")
        if self.messages is not None:
            check_messages(self.messages, settings)
            if self.add_special_tokens is not None:
                raise ParameterError(
                    "add_special_tokens goes with text alone: the chat format has its own", param="add_special_tokens"
                )


class TokenizeResponse(Reply):
    """Tokens in order."""

    ids: list[int]
    tokens: list[str] = Field(description="As the vocabulary spells them.")
    count: int


class DetokenizeRequest(ModelField):
    """Ids of this server's tokenizer."""

    ids: Ids


class DetokenizeResponse(Reply):
    """What they say, special tokens spelled out."""

    text: str
