"""How a message of the library reads over HTTP: what it recommends in the names that requests have.

This module knows nothing about where messages come from or go.
"""

from __future__ import annotations

_ADVICE = (
    ("raise max_length, split the text, or pass truncate=True", "split the text, or send truncate: true"),
    ("shorten the document or pass truncate=True", "shorten the document or send truncate: true"),
    (" or raise max_length", ""),
    (", or raise max_file_bytes", ""),
    ("lower max_new_tokens or shorten the question", "lower max_tokens or shorten the question"),
)
"""What a client cannot change is left out: the model's own limits, and those of the server."""


def as_fields(text: str) -> str:
    """The advice that a message ends with, in the fields of a request; what it quotes before stays as it is."""
    for ours, theirs in _ADVICE:
        if text.endswith(ours):
            return text.removesuffix(ours) + theirs
    return text
