"""``/v1/chat/completions``: messages in, an assistant's message out, whole or in chunks.

The forms are those of the OpenAI API. With ``kb`` the answer is one from a knowledge base.

This module knows nothing about prompts, engines or stores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from gritkit.prompts import Message
from gritkit_serve.errors import ParameterError
from gritkit_serve.schemas.common import (
    Body,
    ModelField,
    Refused,
    Reply,
    Text,
    Usage,
    Whole,
    above,
    either,
    is_none,
)
from gritkit_serve.schemas.kb import ChatKb, ChatSources, Name
from gritkit_serve.schemas.sampling import FinishReason, Sampling
from gritkit_serve.settings import Settings

_NO_TOOLS = "this server calls no tools: leave it out, or describe the tools in a message and ask for JSON"


# -- request -------------------------------------------------------------------------------------------------------


def _only_text(kind: object) -> object:
    if isinstance(kind, str) and kind != "text":
        raise ValueError("is not supported: this model reads text alone")
    return kind


class TextPart(Body):
    """A piece of a message's content."""

    type: Annotated[Literal["text"], BeforeValidator(_only_text)]
    text: Text


Content = Text | Annotated[list[TextPart], Field(min_length=1, max_length=1024, fail_fast=True)]


def _known_role(role: object) -> object:
    if role in ("tool", "function"):
        raise ValueError(f"is not supported: {_NO_TOOLS}")
    return role


class ChatMessage(Body):
    """One message of a conversation; ``developer`` is another name of ``system``."""

    role: Annotated[Literal["system", "developer", "user", "assistant"], BeforeValidator(_known_role)]
    content: Content
    name: Annotated[Any, Refused("no chat format has a place for it, put the name into the content")] = None
    refusal: Annotated[Any, Refused("this server's messages have none")] = None
    annotations: Annotated[Any, Refused("this server's messages have none", [])] = None
    audio: Annotated[Any, Refused("this model reads text alone")] = None
    tool_calls: Annotated[Any, Refused(_NO_TOOLS, [])] = None
    function_call: Annotated[Any, Refused(_NO_TOOLS)] = None

    def message(self) -> Message:
        """As gritkit takes it; the pieces of a content are lines."""
        parts = [self.content] if isinstance(self.content, str) else [part.text for part in self.content]
        return {"role": "system" if self.role == "developer" else self.role, "content": "\n".join(parts)}


def check_messages(messages: Sequence[ChatMessage], settings: Settings) -> None:
    """Raises ParameterError for too many."""
    if len(messages) > settings.max_messages:
        raise ParameterError(
            f"messages has {len(messages)} items: send at most {settings.max_messages}", param="messages"
        )


class JsonSchema(Body):
    """What an answer must look like."""

    name: Annotated[Text, Field(max_length=256)] | None = Field(None, description="Accepted; has no effect.")
    description: str | None = Field(None, description="Accepted; has no effect: say in a message what is wanted.")
    definition: dict[str, Any] = Field(alias="schema", description="A JSON Schema; every answer obeys it.")
    strict: bool | None = Field(None, description="Accepted; has no effect: every answer obeys the schema.")


class TextFormat(Body):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Body):
    """JSON that obeys a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


_KB = "the name of a knowledge base, or an object with its name and options"


def _kb_form(value: object) -> str | None:
    if isinstance(value, str):
        return "name"
    return "options" if isinstance(value, (dict, ChatKb)) else None


Kb = Annotated[
    Annotated[Name, either(_KB), Tag("name")] | Annotated[ChatKb, Tag("options")],
    Discriminator(_kb_form, custom_error_type="kb_form", custom_error_message=f"must be {_KB}"),
]


class ChatRequest(ModelField, Sampling):
    """What an assistant is to answer."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Annotated[Whole, Field(ge=1)] | None = Field(
        None,
        description="Tokens of the answer; 1024 by default, or as this server is set; with kb at most 256 of these.",
    )
    max_tokens: Annotated[Whole, Field(ge=1)] | None = Field(
        None, description="An older name of max_completion_tokens."
    )
    logprobs: bool | None = Field(None, description="Send the log-probability of every token of the answer.")
    top_logprobs: Annotated[Whole, Field(ge=0)] | None = Field(
        None, description="With logprobs: send the likeliest tokens at every place, too."
    )
    response_format: ResponseFormat | None = None
    kb: Kb | None = Field(None, description="Extension: answer the last message from this knowledge base.")
    modalities: Annotated[Any, Refused("this model writes text alone", ["text"], [])] = None
    audio: Annotated[Any, Refused("this model writes text alone")] = None
    tools: Annotated[Any, Refused(_NO_TOOLS, [])] = None
    tool_choice: Annotated[Any, Refused(_NO_TOOLS, "none", "auto")] = None
    functions: Annotated[Any, Refused(_NO_TOOLS, [])] = None
    function_call: Annotated[Any, Refused(_NO_TOOLS, "none", "auto")] = None
    prediction: Annotated[Any, Refused("leave it out")] = None
    reasoning_effort: Annotated[Any, Refused("this model has no separate reasoning", "none")] = None
    verbosity: Annotated[Any, Refused("say in a message how long the answer should be", "medium")] = None
    web_search_options: Annotated[Any, Refused("this server fetches nothing, use kb")] = None

    def check(self, settings: Settings) -> None:
        """Raises ParameterError for fields that contradict each other or pass a limit of this server."""
        super().check(settings)
        check_messages(self.messages, settings)
        if self.top_logprobs is not None and not self.logprobs:
            raise ParameterError("top_logprobs needs logprobs=true", param="top_logprobs")
        if (self.top_logprobs or 0) > settings.max_top_logprobs:
            raise above("top_logprobs", self.top_logprobs, settings.max_top_logprobs)
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ParameterError("max_tokens and max_completion_tokens differ: give one of them", param="max_tokens")

    @property
    def base(self) -> ChatKb | None:
        """The knowledge base and its options, also where the name was given alone."""
        return ChatKb.model_validate({"name": self.kb}) if isinstance(self.kb, str) else self.kb

    @property
    def longest(self) -> int | None:
        """Tokens of an answer, under either name."""
        return self.max_completion_tokens or self.max_tokens


# -- response ------------------------------------------------------------------------------------------------------


class TopLogprob(Reply):
    """A likely token at one place."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Reply):
    """All tokens of an answer or of a chunk."""

    content: list[ChatLogprob]
    refusal: None = None


class AnswerMessage(Reply):
    """What the assistant said."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(Reply):
    """One of n answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(Reply):
    """Answers to a conversation."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    gritkit: ChatSources | None = Field(
        None, exclude_if=is_none, description="With kb alone: what the answer stands on."
    )


class ChatDelta(Reply):
    """What a chunk adds to a message."""

    role: Literal["assistant"] | None = Field(default=None, exclude_if=is_none)
    content: str | None = Field(default=None, exclude_if=is_none)


class ChatChunkChoice(Reply):
    """What a chunk adds to one of n answers."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(Reply):
    """One event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = Field(None, description="Null but in the last chunk; there with include_usage alone.")
    gritkit: ChatSources | None = Field(
        None, exclude_if=is_none, description="With kb alone: first the sources, with the answer's end the rest."
    )
