from __future__ import annotations

import pytest

from gritkit_serve.wording import as_fields


@pytest.mark.parametrize(
    ("library", "server"),
    [
        (
            "it is long: raise max_length, split the text, or pass truncate=True",
            "it is long: split the text, or send truncate: true",
        ),
        ("is longer than 1 MB: split it, or raise max_file_bytes", "is longer than 1 MB: split it"),
        ("no room: lower max_new_tokens or shorten the question", "no room: lower max_tokens or shorten the question"),
        (
            'no text but ["pass truncate=True, or raise max_length"]',
            'no text but ["pass truncate=True, or raise max_length"]',
        ),
    ],
)  # fmt: skip
def test_advice_is_of_fields_and_what_is_quoted_stays(library: str, server: str) -> None:
    assert as_fields(library) == server
