"""What the gate found: which ways of reuse lose too much for a model, kept beside what else is known of it.

A verdict is about a model, a codec, a way of joining documents and a mode; without one, nothing is known and nothing
is forbidden. ``gritkit kb gate`` writes them, :mod:`gritkit.rag.ladder` and ``gritkit info`` go by them.

This module knows nothing about how verdicts are measured.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gritkit.errors import InputError, StoreError
from gritkit.files import home, write_atomic
from gritkit.kv.dockv import Join, check_join

FORMAT_VERSION = 1
_log = logging.getLogger("gritkit")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether one way of reuse is good enough for a model."""

    reuse: str
    """``cached`` or ``linked``."""
    codec: str
    join: Join
    link_tokens: int
    allowed: bool
    reason: str
    """The figures that decided, as a sentence."""
    figures: dict[str, float] = field(default_factory=dict)


def load(fingerprint: str) -> list[Verdict]:
    """The verdicts about a model, as they were saved; none where there was no gate, or its file is not readable."""
    path = home() / "gates" / f"{fingerprint}.json"
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError):
        _log.warning("the verdicts in %s cannot be read and are not used: run gritkit kb gate again", path)
        return []
    if not isinstance(found, dict) or found.get("format_version") != FORMAT_VERSION:
        _log.warning("the verdicts in %s are of another format and are not used: run gritkit kb gate again", path)
        return []
    try:
        return [_verdict(fields) for fields in found["verdicts"]]
    except (KeyError, TypeError, InputError):
        _log.warning("the verdicts in %s cannot be understood and are not used: run gritkit kb gate again", path)
        return []


def _verdict(fields: Any) -> Verdict:
    """Raises TypeError or InputError for fields that are not those of a verdict."""
    one = Verdict(**fields)
    texts = all(isinstance(x, str) for x in (one.reuse, one.codec, one.reason))
    if not texts or type(one.allowed) is not bool or type(one.link_tokens) is not int or one.link_tokens < 0:
        raise TypeError(f"not a verdict: {one}")
    check_join(one.join)
    return one


def save(fingerprint: str, verdicts: Sequence[Verdict]) -> None:
    """Put new verdicts in the place of those about the same codec; others stay. Raises StoreError."""
    codecs = {verdict.codec for verdict in verdicts}
    kept = [verdict for verdict in load(fingerprint) if verdict.codec not in codecs]
    fields = {"format_version": FORMAT_VERSION, "verdicts": [dataclasses.asdict(one) for one in [*kept, *verdicts]]}
    path = home() / "gates" / f"{fingerprint}.json"
    try:
        write_atomic(path, (json.dumps(fields, indent=2) + "\n").encode())
    except OSError as error:
        raise StoreError(f"cannot keep the verdicts in {path}: {error.strerror or error}") from error
