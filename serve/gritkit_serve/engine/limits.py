"""How much the engine takes on at a time.

This module knows nothing about models.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from gritkit.errors import InputError


@dataclass(frozen=True, kw_only=True)
class EngineLimits:
    """Bounds of the engine. Raises InputError for one below 1."""

    slots: int = 16
    """Generations that decode together, for each adapter; their key-values take slots * slot_tokens of memory."""
    slot_tokens: int = 4096
    """Tokens of a prompt and its answer, where the model's context has room for them."""
    prefill_chunk: int = 128
    """Prompt tokens of one step: how long others wait for their next token while a long prompt is read."""
    row_tokens: int = 1024
    """Tokens of one pass over many texts, for the same reason; a longer text is a pass of its own."""
    waiting_generations: int = 256
    waiting_tokens: int = 1 << 20
    """Of texts to be embedded."""
    workers: int = 4
    """Threads for short library work, such as tokenising."""
    base_workers: int = 8
    """Threads for knowledge bases."""
    score_workers: int = 2
    """Threads for documents to be scored: more would not score any faster."""
    waiting_calls: int = 128
    """Calls for the threads of each kind, running ones included."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"{field.name}={value!r} must be a whole number of at least 1")
