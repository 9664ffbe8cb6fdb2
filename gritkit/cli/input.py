"""Where the texts of a command come from: its arguments, a file, or stdin; and what is wrong with them, by line.

This module knows nothing about what the texts are for.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from gritkit.errors import InputError
from gritkit.files import resolve

DASH = "-"


def read_texts(
    given: Sequence[str] | None, file: Path | None, jsonl_field: str | None, *, what: str = "text"
) -> list[str]:
    """One text per argument, or one per line of a file or of stdin (``-``, or piped in with no argument).

    Raises:
        typer.BadParameter: for two sources, or none. InputError: for a source that is empty, not UTF-8, or has a blank
            or malformed line, which is named.
    """
    arguments = list(given or ())
    if arguments and file is not None:
        raise typer.BadParameter(f"give each {what} as an argument or --file, not both")
    if jsonl_field is not None and arguments not in ([], [DASH]):
        raise typer.BadParameter("--jsonl-field is for --file or stdin")
    if arguments and arguments != [DASH]:
        return arguments
    if file is None and not arguments and sys.stdin.isatty():
        raise typer.BadParameter(f"no {what}: give it as an argument, with --file FILE, or on stdin")
    name, content = read_source(None if file is None or str(file) == DASH else file)
    lines = content.replace("\r\n", "\n").split("\n")  # splitlines() would also split at form feeds and the like
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise InputError(f"{name} is empty: there is nothing to read")
    texts = []
    for number, line in enumerate(lines, 1):
        text = line if jsonl_field is None else str(json_row(line, jsonl_field, f"{name}, line {number}")[jsonl_field])
        if not text.strip():
            raise InputError(f"{name}, line {number} is empty: drop it or give it words")
        texts.append(text)
    return texts


def read_source(file: Path | None) -> tuple[str, str]:
    """(name for messages, UTF-8 text) of a file, or of stdin for None."""
    if file is None:
        buffer = getattr(sys.stdin, "buffer", None)
        return "stdin", sys.stdin.read() if buffer is None else decode(buffer.read(), "stdin")
    return str(file), decode(resolve(file).read_bytes(), str(file))


def decode(content: bytes, name: str) -> str:
    """Text of bytes. Raises InputError for what is no UTF-8 text."""
    if b"\0" in content:
        raise InputError(f"{name} is not text: it has a zero byte at {content.index(0)}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text (byte {error.start}): convert it first") from None


def json_row(line: str, field: str, where: str) -> dict[str, Any]:
    """The object on a JSONL line. Raises InputError unless ``field`` of it is text."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON: {error.msg}") from None
    if not isinstance(row, dict) or not isinstance(row.get(field), str):
        if isinstance(row, dict) and field in row:
            raise InputError(f"{where} has no text in the field {field!r} but {json.dumps(row[field]):.60}")
        has = f"it has {', '.join(map(str, row))}" if isinstance(row, dict) and row else "it is no object with fields"
        raise InputError(f"{where} has no text in the field {field!r}: {has}")
    return row
