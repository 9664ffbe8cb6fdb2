"""What a caller may ask of a generation, and what comes back.

This module knows nothing about models or tokenizers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gritkit.errors import GritkitError, InputError

FinishReason = Literal["stop", "length", "cancelled"]
"""``stop``: end-of-text token or stop string; ``length``: token limit or context; ``cancelled``: the caller left."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when to end. Raises InputError for a value outside its range."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    """0 takes the likeliest token; otherwise logits are divided by it."""
    top_p: float = 1.0
    """Keep the likeliest tokens whose probabilities sum to this much (Holtzman et al. 2020, arXiv 1904.09751)."""
    top_k: int = 0
    """Keep this many likeliest tokens; 0 keeps all."""
    min_p: float = 0.0
    """Keep tokens at least this likely relative to the likeliest (Nguyen et al. 2024, arXiv 2407.01082)."""
    repetition_penalty: float = 1.0
    """Divide positive and multiply negative logits of tokens already seen (Keskar et al. 2019, arXiv 1909.05858)."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    seed: int | None = None
    """Makes a sampled answer repeatable on one machine, whatever runs beside it."""

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else () if self.stop is None else self.stop
        object.__setattr__(self, "stop", tuple(stop) if isinstance(stop, Iterable) else (stop,))
        rules = {
            "max_new_tokens": (_whole(self.max_new_tokens) and self.max_new_tokens >= 1, "at least 1"),
            "temperature": (_number(self.temperature) and 0.0 <= self.temperature <= 100.0, "between 0 and 100"),
            "top_p": (_number(self.top_p) and 0.0 < self.top_p <= 1.0, "above 0 and at most 1"),
            "top_k": (_whole(self.top_k) and self.top_k >= 0, "0 (off) or more"),
            "min_p": (_number(self.min_p) and 0.0 <= self.min_p <= 1.0, "between 0 and 1"),
            "repetition_penalty": (
                _number(self.repetition_penalty) and 0.0 < self.repetition_penalty <= 100.0,
                "above 0 and at most 100",
            ),
            "stop": (
                len(self.stop) <= 16 and all(isinstance(s, str) and s for s in self.stop),
                "up to 16 non-empty texts",
            ),
            "seed": (
                self.seed is None or (_whole(self.seed) and -(1 << 63) <= self.seed < 1 << 64),
                "a 64-bit whole number",
            ),
        }
        for name, (holds, what) in rules.items():
            if not holds:
                raise InputError(f"{name}={getattr(self, name)!r} must be {what}")

    @staticmethod
    def of(options: Mapping[str, Any]) -> SamplingParams:
        """From a caller's keywords. Raises InputError for one that there is not."""
        known = SamplingParams.__dataclass_fields__
        for name in options:
            if name not in known:
                raise InputError(f"unknown generation option {name!r}; known are {', '.join(sorted(known))}")
        return SamplingParams(**options)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class Usage:
    """Tokens of one generation."""

    prompt_tokens: int
    """All that stands before the answer, cached documents included."""
    cached_tokens: int
    """How many of them came from stored key-values and were not computed again."""
    completion_tokens: int


@dataclass(frozen=True)
class TokenLogprob:
    """How likely the model held a token to be, before temperature, penalties and constraints."""

    token_id: int
    token: str
    """Its text alone; a replacement character where it is a part of one."""
    raw: bytes
    """Its bytes, which join to the text's."""
    logprob: float
    """Natural logarithm of its probability."""
    top: tuple[TokenLogprob, ...] = ()
    """The likeliest tokens in its place, likeliest first; they have none of their own."""


@dataclass(frozen=True)
class Completion:
    """A finished generation. ``text`` is exactly what streaming would have shown, joined."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of every token but the end of text, where the request asked for them."""


@dataclass(frozen=True)
class Delta:
    """New text of one row while it streams."""

    row: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of the tokens that came since the last one, where the request asked for them; then the text may be empty."""


@dataclass(frozen=True)
class Finished:
    """The end of one row."""

    row: int
    completion: Completion


@dataclass(frozen=True)
class Failed:
    """The end of one row that cannot go on; the other rows of its step can."""

    row: int
    error: GritkitError


Event = Delta | Finished
"""Of a stream, which raises what ended it."""
StepEvent = Delta | Finished | Failed
"""Of a step, whose rows may be several callers'."""


def raising(events: Iterable[StepEvent]) -> Iterator[Event]:
    """The events of rows that are all one caller's: the failure of any is raised."""
    for event in events:
        if isinstance(event, Failed):
            raise event.error
        yield event
