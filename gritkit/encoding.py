"""Texts of any length -> tokens, in memory that does not grow with what does not matter; and what offsets tell.

A tokenizer takes some 600 bytes for each token while it encodes, so what is too long is encoded as far as that is
needed to know it, and many texts are encoded a part at a time.

This module knows nothing about prompts, masks or models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from tokenizers import Encoding, Tokenizer

_WINDOW = 1 << 16
"""Characters; a text of fewer is encoded whole, however long it is then."""
_AT_A_CUT = 16
"""Tokens that the parts of a text may have more than the whole, for each cut."""
_AT_ONCE = 1 << 18
"""Characters of texts that are encoded together."""


def beginning(tokenizer: Tokenizer, text: str, num_tokens: int) -> str:
    """The text, or, where it is large, a beginning of it that has more than so many tokens."""
    if len(text) <= _WINDOW:
        return text
    count = 0
    for start in range(0, len(text), _WINDOW):
        count += len(tokenizer.encode(text[start : start + _WINDOW], add_special_tokens=False)) - _AT_A_CUT
        if count > num_tokens:
            return text[: start + _WINDOW]
    return text


def encoded_each(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[Encoding]:
    """Texts without a beginning or an end, in their order, a part of them at a time."""
    some: list[str] = []
    size = 0
    for text in texts:
        if some and size + len(text) > _AT_ONCE:
            yield from tokenizer.encode_batch(some, add_special_tokens=False)
            some, size = [], 0
        some.append(text)
        size += len(text)
    yield from tokenizer.encode_batch(some, add_special_tokens=False)


def leading(offsets: Sequence[tuple[int, int]], prefix: str) -> int:
    """How many tokens belong to the prefix: those that start in it, unless they take only its last spaces."""
    border = len(prefix.rstrip(" "))
    for count, (start, end) in enumerate(offsets):
        if start >= len(prefix) or (start >= border and end > len(prefix)):
            return count
    return len(offsets)


def inner_of(tokenizer: Tokenizer, saved: str) -> Tokenizer:
    """The tokenizer as it encodes what follows a special token: "prepend a space to the first word only" is off."""
    if '"first"' not in saved:  # large vocabularies take a second to parse
        return tokenizer
    state = json.loads(saved)
    stages = [state.get("pre_tokenizer") or {}]
    stages += stages[0].get("pretokenizers", [])
    firsts = [stage for stage in stages if stage.get("prepend_scheme") == "first"]
    if not firsts:
        return tokenizer
    for stage in firsts:
        stage["prepend_scheme"] = "never"
    inner = Tokenizer.from_str(json.dumps(state))
    inner.no_truncation()
    inner.no_padding()
    inner.encode_special_tokens = True
    return inner
