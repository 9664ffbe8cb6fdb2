"""How a message of the library reads on the command line: one line, keyword arguments as flags.

This module knows nothing about where messages come from or go.
"""

from __future__ import annotations

import re


def one_line(text: str) -> str:
    """Line breaks and runs of spaces as one space."""
    return " ".join(text.split())


def as_flags(text: str) -> str:
    """Keyword arguments that a message recommends, as the flags of the command line."""
    text = re.sub(r"\b(truncate|trust_remote_code)=True", lambda m: "--" + m[1].replace("_", "-"), text)
    text = re.sub(r"\b(prompt_format|reuse)='([\w-]+)'", lambda m: f"--{m[1].replace('_', '-')} {m[2]}", text)
    return text.replace("raise max_length", "raise --max-length")
