"""The input of completions and embeddings: texts, or token ids that are said to be this server's own.

Another tokenizer's ids would silently be other text (LangChain sends tiktoken's by default), so ids need
``"token_ids": true``.

This module knows nothing about tokenizers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from gritkit_serve.errors import ParameterError
from gritkit_serve.schemas.common import Body, Text, either
from gritkit_serve.settings import Settings

Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, fail_fast=True)]
TextOrIds = Annotated[
    Text
    | Annotated[list[Text], Field(min_length=1, fail_fast=True)]
    | Ids
    | Annotated[list[Ids], Field(min_length=1, fail_fast=True)],
    Field(union_mode="left_to_right"),
    either("a text, a list of texts, a list of token ids, or a list of such lists, none of them empty"),
]


class IdsField(Body):
    """Whether numbers are to be taken for token ids."""

    token_ids: bool | None = Field(
        None,
        description="Extension: the numbers are ids of this server's tokenizer, those of /tokenize. "
        "Without it numbers are refused.",
    )


def items_of(given: TextOrIds) -> Sequence[str | list[int]]:
    """A list of texts or of ids, also where one was given alone."""
    if isinstance(given, str):
        return [given]
    if isinstance(given[0], int):
        return [given]
    return given


def check_items(items: Sequence[str | list[int]], token_ids: bool | None, param: str, settings: Settings) -> None:
    """Raises ParameterError for too many of them, and for ids that were not asked to be taken."""
    if len(items) > settings.max_inputs:
        raise ParameterError(f"{param} has {len(items)} items: send at most {settings.max_inputs} at once", param=param)
    if isinstance(items[0], str):
        if token_ids:
            raise ParameterError(f"token_ids=true says that {param} holds token ids, and it holds text", param=param)
    elif not token_ids:
        raise ParameterError(
            f"{param} holds token ids, and their tokenizer may be another one: send text (in LangChain: "
            "OpenAIEmbeddings(check_embedding_ctx_length=False)), or ids from /tokenize together with token_ids=true",
            param=param,
        )
