"""Words of a text without what a copy may change: case, punctuation, spacing, forms of one character.

This module knows nothing about what words are compared for.
"""

from __future__ import annotations

import re
import unicodedata

VERSION = 1
"""Of what counts as a word: figures of different versions are not compared."""

# Scripts written without spaces: each character is a word of its own, as a run of them would be one word per sentence.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores of the folded text (NFKC, then case folding); where a script puts no
    spaces between words, its characters."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    found: list[str] = _WORD.findall(text.casefold())
    return found
