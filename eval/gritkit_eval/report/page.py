"""One HTML page that needs nothing else: its style, its script and its plots are inside, and it links nowhere.

A policy in its head forbids everything but the style and the one script, by digest, so that not even a name that broke
out of its place could run. This module knows nothing about what its tables and plots show.
"""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass

from gritkit_eval.report.grids import Cell, Grid, Head
from gritkit_eval.report.marks import Drawing
from gritkit_eval.report.words import name_html, text_html

_WORDS = ' class="words"'


@dataclass(frozen=True)
class Section:
    """A part of the page, under a heading of its own."""

    title: str
    body: str
    """HTML."""


def page(title: str, lead: str, sections: Sequence[Section], foot: str) -> str:
    """The whole page; ``title``, ``lead`` and ``foot`` are plain text."""
    style, script = _part("plot.css") + _part("page.css"), _part("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    contents = "".join(
        f'<li><a href="#s{number}">{name_html(one.title)}</a></li>' for number, one in enumerate(sections)
    )
    body = "\n".join(
        f'<section aria-labelledby="s{number}"><h2 id="s{number}">{name_html(one.title)}</h2>\n{one.body}\n</section>'
        for number, one in enumerate(sections)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{text_html(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f'<header>\n<h1>{name_html(title)}</h1>\n<p class="lead">{text_html(lead)}</p>\n'
        f'<nav aria-label="Contents"><ul>{contents}</ul></nav>\n</header>\n<main>\n{body}\n</main>\n'
        f"<footer>{text_html(foot)}</footer>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def grid(given: Grid) -> str:
    """A table in a box that scrolls sideways, by keyboard too; its columns can be sorted."""
    heads = "".join(map(_head, given.heads, _of_words(given)))
    body = "\n".join(_row(row) for row in given.rows)
    foot = f"<tfoot>{''.join(_row(row) for row in given.foot)}</tfoot>" if given.foot else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text_html(given.title)}">'
        f'<table class="sortable"><caption>{name_html(given.title)}</caption><thead><tr>{heads}</tr></thead>\n'
        f"<tbody>{body}</tbody>{foot}</table></div>"
    )


def notes(sentences: Sequence[str]) -> str:
    """A list of sentences whose names are HTML already."""
    return '<ul class="notes">' + "".join(f"<li>{one}</li>" for one in sentences) + "</ul>"


def plots(drawn: Sequence[Drawing]) -> str:
    """Plots beside each other where there is room."""
    return f'<div class="plots">{"".join(one.html() for one in drawn)}</div>' if drawn else ""


def _of_words(given: Grid) -> list[bool]:
    """For each column whether its cells are words, which stand on the left."""
    return [any(_is_words(row[place]) for row in given.rows) for place in range(len(given.heads))]


def _head(head: Head, of_words: bool) -> str:
    note = f"<small>{text_html(head.note)}</small>" if head.note else ""
    return f'<th scope="col"{_WORDS if of_words else ""}>{name_html(head.text)}{note}</th>'


def _is_words(cell: Cell) -> bool:
    return cell.value is None and cell.text != "n/a"


def _row(cells: Sequence[Cell]) -> str:
    first, *others = cells
    return f'<tr><th scope="row">{name_html(first.text)}{_note(first)}</th>{"".join(map(_cell, others))}</tr>'


def _cell(cell: Cell) -> str:
    if _is_words(cell):
        return f"<td{_WORDS}>{name_html(cell.text)}</td>"
    if cell.value is None:
        return f"<td>{cell.text}</td>"
    marked = "best" if cell.best else "worse" if cell.worse else ""
    text = f"<b>{text_html(cell.text)}</b>" if marked else text_html(cell.text)
    kind = f' class="{marked}"' if marked else ""
    return f'<td data-v="{cell.value!r}"{kind}>{text}{_note(cell)}</td>'


def _note(cell: Cell) -> str:
    return f"<small>{text_html(cell.note)}</small>" if cell.note else ""


def plot_style() -> str:
    """For plots in files of their own."""
    return _part("plot.css")


def _part(name: str) -> str:
    return importlib.resources.files("gritkit_eval.report").joinpath(name).read_text(encoding="utf-8")
