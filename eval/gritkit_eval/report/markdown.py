"""A report as Markdown.

This module knows nothing about where its tables come from.
"""

from __future__ import annotations

from collections.abc import Sequence

from gritkit_eval.bench.report import Marked, table
from gritkit_eval.report.grids import Cell, Grid
from gritkit_eval.report.words import markdown


def grid(given: Grid) -> str:
    """A table; marked figures in bold."""
    heads = [_noted(markdown(head.text), head.note) for head in given.heads]
    return table(heads, [[_cell(cell) for cell in row] for row in [*given.rows, *given.foot]])


def bullets(notes: Sequence[str]) -> str:
    return "\n".join(f"- {note}" for note in notes)


def _cell(cell: Cell) -> Marked:
    text = markdown(cell.text)
    return _noted(f"**{text}**" if cell.best or cell.worse else text, cell.note)


def _noted(text: str, note: str) -> Marked:
    return Marked(f"{text} ({markdown(note)})" if note else text)
