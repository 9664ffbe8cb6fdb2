"""What all request bodies have in common: strict fields, and refusals that say what to do.

A field that would change the answer and is not supported is refused unless its value asks for nothing; a field that
changes nothing is accepted and stands in :class:`WithoutEffect`; every other unknown one is refused by name.

This module knows nothing about models, engines or routes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    WrapValidator,
)
from pydantic_core import CoreSchema, core_schema

from gritkit_serve.errors import ParameterError


class Body(BaseModel):
    """A request, or a part of one: no unknown fields, no guessing of types, finite numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Reply(BaseModel):
    """A response, or a part of one."""

    model_config = ConfigDict(extra="forbid")


def is_none(value: object) -> bool:
    """For fields of responses that are there only when they say something."""
    return value is None


# -- kinds of values -----------------------------------------------------------------------------------------------


Whole = int
"""A whole number: neither true nor "3" nor 3.0, as bodies guess no types."""


def _encodable(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"has a lone surrogate at character {error.start}") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]
"""Text that can be encoded: no tokenizer takes lone surrogates."""


def either(what: str) -> WrapValidator:
    """For unions: one error that says ``what`` is wanted, where pydantic gives one for each branch.

    What a validator of ours says of a branch is passed on.
    """

    def check(value: Any, validate: Callable[[Any], Any]) -> Any:
        try:
            return validate(value)
        except ValidationError as error:
            own = [e["ctx"]["error"] for e in error.errors() if e["type"] == "value_error"]
            raise ValueError(str(own[0]) if own else f"must be {what}") from None

    return WrapValidator(check)


class Refused:
    """Marks a field that is not supported: any value but null and the harmless ones is refused, with what to do."""

    def __init__(self, advice: str, *harmless: Any) -> None:
        self._advice = advice
        self._harmless = (None, *harmless)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": list(self._harmless), "description": f"Not supported: {self._advice}."}

    def _check(self, value: Any) -> None:
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in self._harmless):
            raise ValueError(f"is not supported: {self._advice}")


def above(name: str, value: object, limit: int) -> ParameterError:
    """The error for a number above a limit of this server."""
    return ParameterError(f"{name}={value} must be at most {limit}", param=name)


# -- fields of every body ------------------------------------------------------------------------------------------


class WithoutEffect(Body):
    """The fields that clients of the OpenAI API routinely send and that change nothing here."""

    user: str | None = Field(None, description="Accepted; has no effect.")
    metadata: dict[str, Any] | None = Field(None, description="Accepted; has no effect.")
    service_tier: str | None = Field(None, description="Accepted; has no effect.")
    safety_identifier: str | None = Field(None, description="Accepted; has no effect.")
    prompt_cache_key: str | None = Field(
        None, description="Accepted; has no effect: beginnings of prompts are kept without it."
    )
    prompt_cache_retention: str | None = Field(None, description="Accepted; has no effect.")
    parallel_tool_calls: bool | None = Field(None, description="Accepted; has no effect, as there are no tools.")
    store: Annotated[Any, Refused("nothing is stored here, leave it out", False)] = None


class ModelField(Body):
    """Which model is asked."""

    model: Text | None = Field(
        None, description="A name from /v1/models: the base model or one of its adapters. Left out: the base model."
    )


# -- responses -----------------------------------------------------------------------------------------------------


class PromptDetails(Reply):
    """A part of :class:`Usage`."""

    cached_tokens: int = Field(description="Prompt tokens that were not computed for this answer.")


class Usage(Reply):
    """Tokens of one request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class InputUsage(Reply):
    """Tokens of a request that generates nothing."""

    prompt_tokens: int
    total_tokens: int
