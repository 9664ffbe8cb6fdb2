"""pydantic's findings about a request, in one line that names the field, its value and what it must be.

This module knows nothing about HTTP or about which fields there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SHOWN = 5
"""Fields that one message speaks of."""
READ = 1000
"""Findings that are looked at: a body of a few KB can have tens of thousands, and nobody reads them."""
VALUE_CHARS = 60

_Path = tuple[str | int, ...]


def explain(findings: Sequence[Any], body: Any) -> tuple[str, str | None]:
    """(the message, the path of the first field) of the errors of a ``RequestValidationError``."""
    by_path: dict[_Path, list[Mapping[str, Any]]] = {}
    for finding in findings[:READ]:
        if finding["type"] == "json_invalid":
            reason = finding.get("ctx", {}).get("error", finding["msg"])
            return f"the body is not valid JSON: {reason} at character {finding['loc'][-1]}", None
        by_path.setdefault(_path(finding, body), []).append(finding)
    # A union reports every alternative that failed; the deepest path is the one that the caller meant.
    holders = _holders(by_path)
    paths = [path for path in by_path if path not in holders]
    lines = [_line(_written(path), by_path[path]) for path in paths[:SHOWN]]
    if len(paths) > SHOWN:
        lines.append(f"and {'at least ' if len(findings) > READ else ''}{len(paths) - SHOWN} more")
    return "; ".join(lines), _written(paths[0]) or None


def _path(finding: Mapping[str, Any], body: Any) -> _Path:
    """The steps of ``messages[0].role`` out of ("body", "messages", 0, "UserMessage", "role"): those that are in the
    body, and the field that is missing."""
    where, *steps = finding["loc"]
    if where != "body":
        return tuple(str(step) for step in steps)
    path: list[str | int] = []
    at = body
    for index, step in enumerate(steps):
        if (isinstance(at, dict) and step in at) or (isinstance(at, list) and _is_index(step, at)):
            path.append(step)
            at = at[step]
        elif finding["type"] == "missing" and index == len(steps) - 1:
            path.append(step)
    return tuple(path)


def _is_index(step: object, items: Sequence[Any]) -> bool:
    return isinstance(step, int) and step < len(items)


def _holders(paths: Iterable[_Path]) -> set[_Path]:
    """Every path that another one goes on from; as many steps as there are, each looked at once."""
    holders: set[_Path] = set()
    for path in paths:
        for length in reversed(range(len(path))):
            if path[:length] in holders:
                break  # and what that one goes on from
            holders.add(path[:length])
    return holders


def _written(path: _Path) -> str:
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return "".join(steps).removeprefix(".")


def _line(path: str, findings: Sequence[Mapping[str, Any]]) -> str:
    first = findings[0]
    name = path or "the body"
    if first["type"] == "extra_forbidden":
        return f"unknown field {name!r}: this server does not know it, and ignores nothing silently"
    if first["type"] == "missing":
        return f"{name} is missing"
    reasons = dict.fromkeys(_reason(finding) for finding in findings)
    return f"{name}={shortened(first.get('input'))} {' or '.join(reasons)}"


def _reason(finding: Mapping[str, Any]) -> str:
    """``must be a valid integer`` out of ``Input should be a valid integer``."""
    text = str(finding["msg"])
    for before, after in (("Input should be ", "must be "), ("Value error, ", ""), ("Assertion failed, ", "")):
        if text.startswith(before):
            return after + text[len(before) :]
    return text[:1].lower() + text[1:]


def shortened(value: Any) -> str:
    """A value as it was sent, cut; containers by their size alone, which may be large."""
    if isinstance(value, dict):
        return f"{{{len(value)} fields}}"
    if isinstance(value, (list, tuple)):
        return f"[{len(value)} items]"
    text = repr(value[: VALUE_CHARS + 1] if isinstance(value, (str, bytes)) else value)
    return text if len(text) <= VALUE_CHARS else text[: VALUE_CHARS - 1] + "…"
