"""Where a text may be cut: headings, blank lines, lines, sentences, words, and what a reader sees as one character.

Positions are character offsets; a border is the place where the next part begins. Every question is asked about a
stretch of the text and costs time in proportion to it, so no text is slow by its size or its shape.

This module knows nothing about tokens, files or knowledge bases.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

HEADED = frozenset({"markdown", "html", "docx"})
"""Kinds of text whose lines of ``# ...`` are headings; parsers write the headings of HTML and DOCX so."""

MAX_HEADINGS = 100_000
"""Of one text; what follows is cut as text under no heading. They stay in memory while the text is cut, some 200 bytes
for each of as little as 2 bytes of text."""
_TITLE_LIMIT = 200
_HEADING = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*))?$")
_UNDERLINE = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)$")
_BLANK = re.compile(r"\n[ \t\r]*\n(?:[ \t\r]*\n)*")
# . ! ? … and what closes after them, before white space; their full-width forms, which no space follows
_SENTENCE = re.compile(
    r"[.!?\u2026][\"'\u201d\u2019)\]]*\s+|[\u3002\uff01\uff1f\uff61]+[\"'\u201d\u2019\u300d\u300f\uff09]*\s*"
)
_SPACE = re.compile(r"\s+")
_INDENTATION_LIMIT = 200
_SKIN_TONES = "".join(map(chr, range(0x1F3FB, 0x1F400)))
_FLAG_LETTERS = "".join(map(chr, range(0x1F1E6, 0x1F200)))
_CLOSES = (")", "]", "}", "end", "else", "elif", "except", "finally", "catch")
"""How lines of code begin that belong to what stands above them."""


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading of a text."""

    start: int
    level: int
    """1 to 6; 1 is the highest."""
    trail: tuple[str, ...]
    """Titles from the highest heading above it down to its own."""


class Borders:
    """The borders of one text."""

    def __init__(self, text: str, kind: str) -> None:
        self._text = text
        self._code = kind.startswith("code:")
        self._headings = _first_headings(text) if kind in HEADED else []
        self._starts = [heading.start for heading in self._headings]

    def trail(self, position: int) -> tuple[str, ...]:
        """The headings that a position stands under, its own line included."""
        index = bisect_right(self._starts, position)
        return self._headings[index - 1].trail if index else ()

    def is_heading(self, position: int) -> bool:
        """Whether a heading begins there."""
        index = bisect_right(self._starts, position)
        return index > 0 and self._starts[index - 1] == position

    def strongest(self, low: int, high: int) -> list[int]:
        """The borders of the strongest sort that has any in (low, high], ascending; none in a stretch without space."""
        return (
            self._top_headings(low, high)
            or (self._code_lines(low, high) if self._code else self._blanks(low, high))
            or self._lines(low, high)
            or [match.end() for match in _SENTENCE.finditer(self._text, low, high)]
            or self._words(low, high)
        )

    def character(self, low: int, high: int) -> int:
        """The last place in (low, high] that cuts no visible character in two; ``high`` where there is none."""
        place = high
        while place > low and joined(self._text, place, low):
            place -= 1
        return place if place > low else high

    def next_part(self, position: int) -> int:
        """Past white space; at the beginning of a line its indentation is kept."""
        run = _SPACE.match(self._text, position)
        if run is None:
            return position
        begin = self._text.rfind("\n", position, run.end()) + 1
        if not begin:
            begin = position if position == 0 or self._text[position - 1] == "\n" else run.end()
        return begin if run.end() - begin <= _INDENTATION_LIMIT else run.end()

    def _top_headings(self, low: int, high: int) -> list[int]:
        among = self._headings[bisect_right(self._starts, low) : bisect_right(self._starts, high)]
        top = min((heading.level for heading in among), default=0)
        return [heading.start for heading in among if heading.level == top]

    def _blanks(self, low: int, high: int) -> list[int]:
        return [match.end() for match in _BLANK.finditer(self._text, low, high)]

    def _lines(self, low: int, high: int) -> list[int]:
        found = []
        place = self._text.find("\n", low, high)
        while place >= 0:
            found.append(place + 1)
            place = self._text.find("\n", place + 1, high)
        return found

    def _code_lines(self, low: int, high: int) -> list[int]:
        """The least indented lines, those after a blank line before others: where definitions begin."""
        lines = []
        after_blanks = set(self._blanks(low, high))
        for start in self._lines(low, high):
            end = self._text.find("\n", start, start + 400)
            line = self._text[start : end if end >= 0 else start + 400]
            bare = line.lstrip()
            if bare and not bare.startswith(_CLOSES):
                lines.append((len(line) - len(bare), start not in after_blanks, start))
        best = min(lines, default=(0, False, 0))[:2]
        return [line[2] for line in lines if line[:2] == best]

    def _words(self, low: int, high: int) -> list[int]:
        return [match.end() for match in _SPACE.finditer(self._text, low, high)]


def _first_headings(text: str) -> list[Heading]:
    """At most ``MAX_HEADINGS``; the next one stands for all that follow, with no titles."""
    found = list(islice(_headings(text), MAX_HEADINGS + 1))
    if len(found) > MAX_HEADINGS:
        found[-1] = replace(found[-1], trail=())
    return found


def _headings(text: str) -> Iterator[Heading]:
    """Headings of Markdown, ``# ...`` or underlined, outside of code, comments and front matter."""
    above: list[tuple[int, str]] = []
    fence = ""
    comment = False
    before: tuple[int, str] | None = None
    front_matter = text.startswith("---\n")
    for number, (start, line) in enumerate(_lines_of(text)):
        found: tuple[int, int, str] | None = None
        if front_matter:
            front_matter = number == 0 or line.rstrip() not in ("---", "...")
        elif comment:
            comment = "-->" not in line
        elif fence:
            mark = line.strip()
            fence = "" if mark.startswith(fence) and not mark.strip(fence[0]) else fence
        elif opened := _FENCE.match(line):
            fence = opened[1] if "`" not in opened[2] else ""
        elif line.lstrip().startswith("<!--"):
            comment = "-->" not in line
        elif match := _HEADING.match(line):
            found = (start, len(match[1]), match[2] or "")
        elif before and (match := _UNDERLINE.match(line)):
            found = (before[0], 1 if match[1][0] == "=" else 2, before[1])
        elif line.strip():
            # the first line of a paragraph of one line: longer ones are no titles
            before = (start, line) if before is None and not line.startswith(("    ", "\t", ">", "-", "|")) else None
            continue
        before = None
        if found:
            begin, level, title = found
            above = [one for one in above if one[0] < level]
            above.append((level, " ".join(title.strip().rstrip("#").split())[:_TITLE_LIMIT]))
            yield Heading(begin, level, tuple(title for _, title in above if title))


def _lines_of(text: str) -> Iterator[tuple[int, str]]:
    """(offset, line without its end); a line's first characters suffice to know a heading."""
    start = 0
    while start < len(text):
        end = text.find("\n", start)
        end = end if end >= 0 else len(text)
        yield start, text[start : min(end, start + 1000)].rstrip("\r")
        start = end + 1


def joined(text: str, place: int, low: int = 0) -> bool:
    """Whether the characters on both sides of a place are seen as one: accents, joined emoji, flags, Korean letters.

    ``low`` is a place before it that is known to cut nothing. In doubt it says yes; Unicode (annex 29) is finer.
    """
    if not low < place < len(text):
        return False
    left, right = text[place - 1], text[place]
    if right < "\u0300":
        return left == "\r" and right == "\n"
    if left in "\r\n":
        return False
    if unicodedata.category(right) in ("Mn", "Me", "Mc") or right in "\u200c\u200d" or right in _SKIN_TONES:
        return True
    if left == "\u200d":
        return unicodedata.category(right) == "So"
    if left in _FLAG_LETTERS and right in _FLAG_LETTERS:
        first = place
        while first > low and text[first - 1] in _FLAG_LETTERS:
            first -= 1
        return (place - first) % 2 == 1  # flags are pairs of letters
    return _is_jamo(right, vowels_on=True) or (_is_jamo(left) and (_is_jamo(right) or "\uac00" <= right <= "\ud7a3"))


def _is_jamo(character: str, *, vowels_on: bool = False) -> bool:
    """Whether it is a part of a Korean syllable; ``vowels_on``: one that cannot begin it."""
    if "\u1160" <= character <= "\u11ff" or "\ud7b0" <= character <= "\ud7fb":
        return vowels_on
    return not vowels_on and ("\u1100" <= character <= "\u115f" or "\ua960" <= character <= "\ua97c")
