"""What a checkpoint says about how it embeds: the contents of ``gritkit_config.json``.

This module knows nothing about weights, tokenizers or folders.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal, get_args

from gritkit.errors import CheckpointError, InputError

FORMAT_VERSION = 1
FILE_NAME = "gritkit_config.json"

Pooling = Literal["mean", "weighted_mean", "last", "cls"]
EmbeddingAttention = Literal["bidirectional", "causal"]
AttentionCode = Literal["bb", "cc", "bbcc", "cccc"]
"""How the original GRIT names attention, see :func:`attention_of`."""
EmbeddingWindow = Literal["exclusive", "inclusive", "full"]


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """How texts become vectors. Raises InputError for a value outside its list."""

    embedding_attention: EmbeddingAttention = "bidirectional"
    """Whether the tokens of a text see each other both ways."""
    embedding_window: EmbeddingWindow = "exclusive"
    """What a bidirectional token sees in sliding-window layers: |q-k| < W, |q-k| <= W, or everything."""
    pooling: Pooling = "mean"
    """Mean over the text's tokens, position-weighted mean (SGPT), the last token, or the first."""
    prompt_format: str = "plain"
    """Name of a preset of ``gritkit.prompts``."""
    max_length: int = 512
    """Tokens of one embedded text, format and instruction included."""
    matryoshka_dims: tuple[int, ...] = ()
    """Sizes that the model was trained to be cut to; empty when it was not."""

    def __post_init__(self) -> None:
        for name, kind in (
            ("embedding_attention", EmbeddingAttention),
            ("embedding_window", EmbeddingWindow),
            ("pooling", Pooling),
        ):
            if getattr(self, name) not in get_args(kind):
                raise InputError(f"{name}={getattr(self, name)!r} is not one of {', '.join(get_args(kind))}")
        if not _is_count(self.max_length):
            raise InputError(f"max_length={self.max_length!r} must be a positive whole number")
        if not isinstance(self.prompt_format, str):
            raise InputError(f"prompt_format={self.prompt_format!r} must be the name of a preset")
        if not isinstance(self.matryoshka_dims, tuple) or not all(map(_is_count, self.matryoshka_dims)):
            raise InputError(f"matryoshka_dims={self.matryoshka_dims!r} must be a list of positive whole numbers")

    def override(self, **given: Any) -> EmbeddingConfig:
        """A copy with the values that are not None replaced; ``embedding_attention`` may be a code of the original GRIT
        (:func:`attention_of`)."""
        given = {name: value for name, value in given.items() if value is not None}
        if isinstance(given.get("embedding_attention"), str):
            given["embedding_attention"] = attention_of(given["embedding_attention"])
        return dataclasses.replace(self, **given)

    def to_json(self) -> str:
        return json.dumps({"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}, indent=2) + "\n"

    @staticmethod
    def from_json(text: str, where: str) -> EmbeddingConfig:
        """Raises CheckpointError for another format version, an unknown field or a wrong type."""
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise CheckpointError(f"{where} is not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise CheckpointError(f"{where} holds {type(fields).__name__} instead of an object")
        version = fields.pop("format_version", None)
        if version is True or version != FORMAT_VERSION:
            raise CheckpointError(
                f"{where} has format version {version!r} and this gritkit reads {FORMAT_VERSION}: "
                "save the model again with the gritkit that made it, or update gritkit"
            )
        known = {field.name for field in dataclasses.fields(EmbeddingConfig)}
        unknown = sorted(set(fields) - known)
        if unknown:
            raise CheckpointError(f"{where} has an unknown field {unknown[0]!r}; known are {', '.join(sorted(known))}")
        if isinstance(fields.get("matryoshka_dims"), list):
            fields["matryoshka_dims"] = tuple(fields["matryoshka_dims"])
        try:
            return EmbeddingConfig(**fields)
        except InputError as error:
            raise CheckpointError(f"{where}: {error}") from None


def attention_of(code: str) -> str:
    """The attention that a code of the original GRIT names (Muennighoff et al. 2024, arXiv 2402.09906, Table 6).

    The first two letters are instruction and text when embedding, the last two, if any, prompt and answer when
    generating; ``b`` is bidirectional, ``c`` causal. What is no code comes back as it is.

    Raises:
        InputError: for codes of attention that there is not: instruction and text that differ, or a prompt that is
            read both ways when generating.
    """
    if len(code) not in (2, 4) or set(code) - set("bc"):
        return code
    if code[2:] not in ("", "cc"):
        raise InputError(f"attention code {code!r}: generation is causal here, so its last two letters must be 'cc'")
    if code[:2] not in ("bb", "cc"):
        raise InputError(f"attention code {code!r}: instruction and text attend alike here, as in 'bbcc' or 'cccc'")
    return "bidirectional" if code[0] == "b" else "causal"


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
