"""Names and numbers as a reader sees them. Names come from files and may hold anything.

This module knows nothing about outcomes.
"""

from __future__ import annotations

import html
import json
import math
import re
import unicodedata
from typing import Any

_MARKUP = re.compile(r"([\\`*\[\]<>|~]|(?<![^\W_])_|_(?![^\W_]))")
_ENTITY = re.compile(r"&(?=#?\w+;)")
_LINK = re.compile(r"(?i)\b(https?|ftp)://|\bwww\.")


_TURNS = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)])
"""Characters that turn the direction of writing, and so may make a name read as another."""


def plain(text: str) -> str:
    """One line that any encoder takes: control characters and half characters replaced, turns of direction removed."""
    whole = text.translate(_TURNS).encode("utf-8", "replace").decode("utf-8")
    kept = "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in whole)
    return " ".join(kept.split()) or "(no name)"


def name_html(text: str) -> str:
    """A name on a page: escaped, and on its own where it changes the direction of writing."""
    return f"<bdi>{html.escape(plain(text))}</bdi>"


def text_html(text: str) -> str:
    return html.escape(plain(text))


def markdown(text: str) -> str:
    """A name in a Markdown table: no markup, no cell border, no link."""
    escaped = _ENTITY.sub("&amp;", _MARKUP.sub(r"\\\1", plain(text)))
    return _LINK.sub(lambda found: found[0].replace("://", r"\://").replace("www.", r"www\."), escaped)


def figure(value: float) -> str:
    """Four decimals for what lies near 1, fewer for large numbers; n/a for what is not defined."""
    if not math.isfinite(value):
        return "n/a"
    size = abs(value)
    if size >= 10_000 or (size >= 10 and value == round(value)):
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:,.2f}"
    return f"{value:.1e}" if 0 < size < 5e-4 else f"{value:.4f}"


def ratio(value: float) -> str:
    return "n/a" if not math.isfinite(value) else f"{value:.3f}"


def duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "n/a"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def setting(name: str, value: Any) -> str:
    """``name=value``; a string that looks like another kind of value is quoted, so that no two values look alike."""
    bare = isinstance(value, str) and not re.fullmatch(r"true|false|null|[-\d\"{\[].*|", value, re.DOTALL)
    return f"{name}={value if bare else json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)}"


def count(number: int, noun: str, plural: str = "") -> str:
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def listed(names: list[str], most: int = 12) -> str:
    """Names by comma, and how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"
