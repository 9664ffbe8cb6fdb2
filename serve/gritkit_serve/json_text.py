"""JSON that is safe to parse: bounded nesting, bounded number of objects, no key twice, no half characters, no NaN.

Python's own parser takes all of these, and what they do comes later: an object costs twenty times its text, a key given
twice means one thing here and another in a proxy, infinity breaks the answer that quotes it.

This module knows nothing about HTTP or about which fields there are.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from gritkit.errors import InputError

_STRING = re.compile(rb'"[^"]*"?')
_STEPS = bytes({ord("["): 1, ord("{"): 1}.get(byte, 2) for byte in range(256))
_ALL_BUT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def check(body: bytes, *, max_depth: int, max_containers: int) -> None:
    """Raises InputError for a text that is no JSON, or that should not be parsed. Takes linear time and memory."""
    # Escaped backslashes go first: what then stands before a quote escapes it.
    bare = _STRING.sub(b"", body.replace(b"\\\\", b"").replace(b'\\"', b""))
    brackets = bare.translate(_STEPS, _ALL_BUT_BRACKETS)
    if len(brackets) > 2 * max_containers:
        raise InputError(f"the body has more than {max_containers} lists and objects: send less at a time")
    if max(accumulate(1 if step == 1 else -1 for step in brackets), default=0) > max_depth:
        raise InputError(f"the body is nested more than {max_depth} levels deep")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"the body is not UTF-8: byte {error.start} begins no character") from None
    value = _parsed(text)
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise InputError("the body has half of a surrogate pair (\\ud800 to \\udfff alone)") from None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" if text else "it is empty"
        raise InputError(f"the body is not valid JSON: {error.msg} ({where})") from None
    except InputError:
        raise
    except ValueError as error:  # a number with thousands of digits
        raise InputError(f"the body has a number that cannot be read: {error}") from None


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InputError(f"the body has {twice[:60]!r} twice in one object: give it once")
    return values


def _refuse(name: str) -> Any:
    raise InputError(f"the body has {name}, which is not JSON: give a finite number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise InputError(f"the body has {digits[:60]}, which is too large: give a finite number")
    return value
