"""How a message of the library reads over HTTP: what it recommends in the names that requests have.

This module knows nothing about where messages come from or go.
"""

from __future__ import annotations

_NAMES = (
    ("raise max_length, ", ""),
    (" or raise max_length", ""),
    (", or raise max_file_bytes", ""),
    ("pass truncate=True", "send truncate: true"),
    ("lower max_new_tokens", "lower max_tokens"),
)
"""What a client cannot change is left out: the model's own limits, and those of the server."""


def as_fields(text: str) -> str:
    """Keyword arguments that a message recommends, as fields of a request."""
    for name, field in _NAMES:
        text = text.replace(name, field)
    return text
