"""Results as JSON, JSON lines, or a table of aligned columns; to stdout, or whole to a file.

This module knows nothing about what the results are.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gritkit.files import resolve, write_atomic

_PIECE = 1 << 16


def to_json(value: Any) -> str:
    """One line, other scripts left readable."""
    return json.dumps(value, ensure_ascii=False)


def listing(rows: Sequence[str], *, lines: bool) -> str:
    """JSON objects as lines, or as one array."""
    return "".join(f"{row}\n" for row in rows) if lines else "[" + ",\n ".join(rows) + "]\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligned columns; the last one is cut to the width of a terminal."""
    cells = [list(header), *([" ".join(cell.split()) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    room = max(20, shutil.get_terminal_size((120, 24)).columns - sum(widths[:-1]) - 2 * (len(widths) - 1))
    for row in cells:
        row[-1] = row[-1] if len(row[-1]) <= room else row[-1][: room - 1] + "…"
    return "".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() + "\n" for row in cells)


def write(content: str | bytes, output: Path | None = None) -> None:
    """To stdout, or to a file that is whole or absent."""
    if output is not None:
        write_atomic(resolve(output), content.encode() if isinstance(content, str) else content)
        return
    for start in range(0, len(content), _PIECE):  # so that a reader who left is noticed before the end
        piece = content[start : start + _PIECE]
        if isinstance(piece, str):
            sys.stdout.write(piece)
        else:
            sys.stdout.buffer.write(piece)
    sys.stdout.flush()


def note(text: str) -> None:
    """A line beside the data: to stderr."""
    print(text, file=sys.stderr, flush=True)
