"""The fields that chats and completions share: how tokens are chosen, when to end, how many answers.

Without a temperature answers are sampled at 1, as the OpenAI API does; ``gritkit`` itself takes the likeliest token
(temperature 0) unless told otherwise.

This module knows nothing about prompts or engines.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from gritkit.generation.params import SamplingParams
from gritkit_serve.errors import ParameterError
from gritkit_serve.schemas.common import Body, Refused, Text, Whole, WithoutEffect, above, either
from gritkit_serve.settings import Settings

FinishReason = Literal["stop", "length"]
"""The end of text or a stop text; or the limit of tokens, or that of the context."""
MAX_STOPS = 16
"""As in ``SamplingParams``."""

StopText = Annotated[Text, Field(min_length=1)]
Stop = Annotated[
    StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)],
    either(f"a text, or a list of at most {MAX_STOPS} of them, none of them empty"),
]


def check_stop(stop: Stop | None, settings: Settings) -> None:
    """Raises ParameterError for more or longer stop texts than this server looks for."""
    stops = [stop] if isinstance(stop, str) else stop or []
    if len(stops) > settings.max_stop:
        raise ParameterError(f"stop has {len(stops)} texts: give at most {settings.max_stop}", param="stop")
    if any(len(stop) > settings.max_stop_chars for stop in stops):
        raise ParameterError(f"a stop text may have at most {settings.max_stop_chars} characters", param="stop")


class StreamOptions(Body):
    """What else a stream says."""

    include_usage: bool | None = Field(None, description="End with a chunk without choices that carries the usage.")
    include_obfuscation: bool | None = Field(None, description="Accepted; has no effect: chunks are never padded.")


class Sampling(WithoutEffect):
    """One request's way of choosing tokens."""

    n: Annotated[Whole, Field(ge=1)] | None = Field(
        None, description="Answers; 1 by default. Answer i is the one of seed + i."
    )
    temperature: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, description="1 by default, as in the OpenAI API; 0 takes the likeliest token."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Whole, Field(ge=0)] | None = Field(
        None, description="Extension: keep this many likeliest tokens; 0 keeps all."
    )
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="Extension: keep tokens at least this likely relative to the likeliest."
    )
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = Field(
        None, description="Extension: above 1 makes tokens already seen less likely."
    )
    stop: Stop | None = Field(None, description="Texts that end the answer; they are not part of it.")
    seed: Annotated[Whole, Field(ge=-(2**63), lt=2**63)] | None = Field(
        None, description="Makes a sampled answer repeatable."
    )
    stream: bool | None = Field(None, description="Send the answer as server-sent events while it comes.")
    stream_options: StreamOptions | None = Field(None, description="Only with stream.")
    cache_salt: Annotated[Text, Field(max_length=256)] | None = Field(
        None, description="Extension: prompts under one salt share computed beginnings, and with no others."
    )
    presence_penalty: Annotated[Any, Refused("use repetition_penalty", 0)] = None
    frequency_penalty: Annotated[Any, Refused("use repetition_penalty", 0)] = None
    logit_bias: Annotated[Any, Refused("leave it out", {})] = None

    def check(self, settings: Settings) -> None:
        """Raises ParameterError for fields that contradict each other or pass a limit of this server."""
        if (self.n or 1) > settings.max_n:
            raise above("n", self.n, settings.max_n)
        check_stop(self.stop, settings)
        if self.stream_options is not None and not self.stream:
            raise ParameterError("stream_options needs stream=true", param="stream_options")

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def params(self, max_new_tokens: int) -> SamplingParams:
        """For the first of the n answers. Raises InputError for a value outside its range."""
        given = {
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "stop": self.stop,
            "seed": self.seed,
        }
        return SamplingParams(
            max_new_tokens=max_new_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
        )
