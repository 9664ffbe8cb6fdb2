"""Texts -> chunks of at most so many tokens, cut where their structure allows it best, with some overlap.

A chunk is as long as it may be and ends at the strongest border in its second half: a heading, a blank line (in code:
before the least indented line), a line, a sentence, a word, a visible character. The next one repeats the end of it
from a border on, unless a heading begins there. Tokens are counted by encoding a stretch from where the chunk begins,
and each chunk once more on its own, so the limit holds exactly and the time grows with the text and with nothing else.
(The library semantic-text-splitter takes 7 to 15 times the time of encoding, and on nested lists the square.)

This module knows nothing about files, models or knowledge bases.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import Tokenizer

from gritkit.errors import InputError
from gritkit.rag.outline import Borders

MIN_TOKENS = 8
_TRIES = 3
"""Borders that are tried for an overlap before there is none."""


@dataclass(frozen=True)
class Chunk:
    """A part of a text: ``text`` is exactly its characters from ``start`` to ``end``."""

    text: str
    start: int
    end: int
    trail: tuple[str, ...] = ()
    """The headings that it stands under, for display: ("Guide", "Install")."""


class Chunker:
    """Cuts texts for one tokenizer; it may be used by several threads at once.

    ``max_tokens`` and ``overlap`` count the tokens of a chunk alone, without those of a prompt or a beginning of text.

    Raises:
        InputError: for fewer than 8 ``max_tokens``, or an ``overlap`` of more than half of them.
    """

    def __init__(self, tokenizer: Tokenizer, *, max_tokens: int, overlap: int = 0) -> None:
        if not isinstance(max_tokens, int) or isinstance(max_tokens, bool) or max_tokens < MIN_TOKENS:
            raise InputError(f"chunks of {max_tokens!r} tokens are too small: give at least {MIN_TOKENS}")
        if not isinstance(overlap, int) or isinstance(overlap, bool) or not 0 <= overlap <= max_tokens // 2:
            raise InputError(
                f"an overlap of {overlap!r} tokens does not go with chunks of {max_tokens}: "
                f"give 0 to {max_tokens // 2}, half a chunk"
            )
        if tokenizer.truncation is not None or tokenizer.padding is not None:
            tokenizer = Tokenizer.from_str(tokenizer.to_str())  # the caller's stays as it is
            tokenizer.no_truncation()
            tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.overlap = overlap

    def count(self, text: str) -> int:
        """Tokens of a text on its own."""
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def chunks(self, text: str, kind: str = "text", *, tick: Callable[[], object] = lambda: None) -> list[Chunk]:
        """The chunks in order; they cover the text but for white space between them. A short text is one, unchanged.

        ``kind`` says what structure to look for: "markdown", "html" and "docx" have headings, "code:..." has
        indentation, anything else is prose. A text of white space has no chunks. ``tick`` is called before each chunk;
        what it raises ends the cutting.

        Raises:
            InputError: for a character that takes more tokens than a chunk may have.
        """
        if not text.strip():
            return []
        borders = Borders(text, kind)
        if len(text) <= 64 * self.max_tokens and self.count(text) <= self.max_tokens:
            return [Chunk(text, 0, len(text), borders.trail(0))]
        spans = self._spans(text, borders, tick)
        return [Chunk(text[start:end], start, end, borders.trail(start)) for start, end in spans]

    def _spans(self, text: str, borders: Borders, tick: Callable[[], object]) -> list[tuple[int, int]]:
        spans: list[tuple[int, int]] = []
        length = len(text.rstrip())
        start, done = borders.next_part(0), 0
        window = 4 * self.max_tokens
        while done < length:
            tick()
            starts, window = self._token_starts(text, start, length, window)
            stop = self._stop(text, start, length, starts, borders)
            end = start + len(text[start:stop].rstrip())
            if end <= max(done, start):  # the overlap, or indentation, left no room for anything new
                start = borders.next_part(max(stop, done))
                continue
            spans.append((start, end))
            done = end
            begin = (
                None if borders.is_heading(stop) or stop >= length else self._again(text, start, end, starts, borders)
            )
            start = borders.next_part(stop) if begin is None else begin
        return spans

    def _token_starts(self, text: str, start: int, length: int, window: int) -> tuple[list[int], int]:
        """Where tokens begin, up to the one that a chunk from ``start`` has no room for; and how far to look next."""
        while True:
            end = min(start + window, length)
            encoding = self._tokenizer.encode(text[start:end], add_special_tokens=False)
            if len(encoding) > self.max_tokens or end == length:
                break
            window *= 2
        latest, starts = start, []
        for offset, _ in encoding.offsets[: self.max_tokens + 1]:
            latest = max(latest, start + offset)  # a normalizer may report a token before its predecessor
            starts.append(latest)
        if len(starts) > self.max_tokens:
            window = int(1.2 * (starts[-1] - start)) + 64
        return starts, window

    def _stop(self, text: str, start: int, length: int, starts: list[int], borders: Borders) -> int:
        """Where a chunk ends that begins at ``start``, so that its tokens on its own are within the limit."""
        if len(starts) <= self.max_tokens and self.count(text[start:length]) <= self.max_tokens:
            return length
        keep = min(self.max_tokens, len(starts) - 1)
        while True:
            limit = max(starts[keep], start + 1)
            low = min(starts[keep // 2], limit - 1)
            # a cut is as good where the white space after the last token ends
            past = limit + len(text[limit : limit + 64]) - len(text[limit : limit + 64].lstrip())
            found = borders.strongest(low, past)
            stop = found[-1] if found else borders.character(start, limit)
            excess = self.count(text[start:stop].rstrip()) - self.max_tokens
            if excess <= 0:
                return stop
            if limit == start + 1:
                raise InputError(
                    f"the character U+{ord(text[start]):04X} alone takes {self.max_tokens + excess} tokens, "
                    f"more than a chunk of {self.max_tokens} may have: make chunks larger"
                )
            # what was cut may have fewer tokens in its surroundings than on its own: leave that many more out
            keep = max(0, min(keep, bisect_left(starts, stop)) - excess)

    def _again(self, text: str, start: int, end: int, starts: list[int], borders: Borders) -> int | None:
        """Where the next chunk begins, so that it repeats at most ``overlap`` tokens; None for no overlap."""
        if not self.overlap:
            return None
        first = max(bisect_left(starts, end) - self.overlap, 1)
        for begin in borders.strongest(starts[first] - 1, end - 1)[:_TRIES] if first < len(starts) else ():
            if begin > start and text[begin:end].strip() and self.count(text[begin:end]) <= self.overlap:
                return begin
        return None
