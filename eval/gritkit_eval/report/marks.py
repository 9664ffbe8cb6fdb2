"""Pieces of SVG that all plots share: scales, axes, one mark for each run, text.

Colours are classes of the page's style sheet, so that a plot follows light and dark. Every mark has its value as a
title, which browsers show on hover. This module knows nothing about outcomes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gritkit_eval.report.words import figure, name_html, plain, text_html

WIDTH = 480
"""Units of every plot; a phone shows about as many pixels, a page about twice as many."""
COLOURS = 8
_SHAPES = 5


@dataclass(frozen=True)
class Scale:
    """Values to places between two edges; ticks at round values."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool = False

    def at(self, value: float) -> float:
        low, high, given = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        share = (given - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)


def scale(values: Sequence[float], start: float, end: float, *, about: int = 5, log: bool = False) -> Scale:
    """Around finite values, at least one of them; ``log`` only for positive ones."""
    low, high = min(values), max(values)
    if log:
        ticks = _decades(low, high)
        return Scale(min(low, ticks[0]), max(high, ticks[-1]), start, end, tuple(ticks), True)
    if low == high:
        low, high = low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1
    step = _round_step((high - low) / about)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [number * step for number in range(first, last + 1)]
    return Scale(ticks[0], ticks[-1], start, end, tuple(ticks))


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough * 0.999)


def _decades(low: float, high: float) -> list[float]:
    """1, 2, 5 of every power of ten around the values; powers alone over many of them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if last - first > 3:
        return [10.0**power for power in range(first, last + 1)]
    every = [step * 10.0**power for power in range(first, last + 1) for step in (1, 2, 5)]
    below = [one for one in every if one <= low * 1.0001] or every[:1]
    above = [one for one in every if one >= high * 0.9999] or every[-1:]
    return [one for one in every if below[-1] <= one <= above[0]]


def tick(value: float) -> str:
    """A round number in few characters."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9999:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}" if abs(value) > 1e-9 else "0"


def mark(number: int, x: float, y: float, title: str, *, size: float = 5.5) -> str:
    """The sign of run ``number``: a colour and a shape, so that it is told apart in grey too."""
    shapes = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}"/>',
        _polygon(x, y, size * 1.25, 4, 45),
        _polygon(x, y, size * 1.35, 3, -90),
        _polygon(x, y, size * 1.3, 4, 0),
        _polygon(x, y, size * 1.25, 3, 90),
    )
    return f'<g class="m c{number % COLOURS}">{_title(title)}{shapes[number % _SHAPES]}</g>'


def _polygon(x: float, y: float, radius: float, corners: int, turn: float) -> str:
    angles = [math.radians(turn + 360 * corner / corners) for corner in range(corners)]
    points = " ".join(f"{x + radius * math.cos(a):.1f},{y + radius * math.sin(a):.1f}" for a in angles)
    return f'<polygon points="{points}"/>'


def dot(number: int, x: float, y: float, title: str) -> str:
    return f'<circle class="d c{number % COLOURS}" cx="{x:.1f}" cy="{y:.1f}" r="3">{_title(title)}</circle>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def words(x: float, y: float, text: str, kind: str = "", *, anchor: str = "start", most: int = 200) -> str:
    """Text, cut in its middle to so many characters, as names often differ at their end; all of it as its title."""
    whole = plain(text)
    cut = whole if len(whole) <= most else f"{whole[: most // 2].rstrip()}…{whole[-(most - 1) // 2 :].lstrip()}"
    title = _title(whole) if cut != whole else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{title}{text_html(cut)}</text>'


def grid(across: Scale, top: float, bottom: float) -> str:
    """Upright lines at the ticks of a scale from left to right, their values below."""
    return "".join(
        line(across.at(one), top, across.at(one), bottom, "grid")
        + words(across.at(one), bottom + 16, tick(one), "tick", anchor="middle")
        for one in across.ticks
    )


@dataclass(frozen=True)
class Drawing:
    """A plot: what is drawn, what it shows in a sentence, and which sign is which name."""

    height: float
    title: str
    parts: Sequence[str]
    caption: str = ""
    entries: Sequence[tuple[int, str]] = ()

    def html(self) -> str:
        """For a page that has the style; the legend is text of the page."""
        items = "".join(
            f'<li><svg viewBox="0 0 16 16" aria-hidden="true">{mark(number, 8, 8, name)}</svg>{name_html(name)}</li>'
            for number, name in self.entries
        )
        below = f'<ul class="legend">{items}</ul>' if items else ""
        said = f"<figcaption>{text_html(self.caption)}</figcaption>" if self.caption else ""
        return f"<figure>{self._svg('', self.parts, self.height)}{below}{said}</figure>"

    def svg(self, style: str) -> str:
        """A file of its own, style and legend inside."""
        rows = []
        for place, (number, name) in enumerate(self.entries):
            y = self.height + 14 + 20 * place
            rows += [mark(number, 20, y, name), words(34, y + 4.5, name, most=60)]
        height = self.height + 20 * len(self.entries) + (8 if rows else 0)
        parts = [f"<style>{style}</style>", f'<rect class="paper" width="{WIDTH}" height="{height:.0f}"/>']
        size = f' xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}"'
        return self._svg(size, [*parts, *self.parts, *rows], height) + "\n"

    def _svg(self, more: str, parts: Sequence[str], height: float) -> str:
        about = text_html(self.title)
        return f'<svg{more} viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{about}">{"".join(parts)}</svg>'


def _title(text: str) -> str:
    return f"<title>{text_html(text)}</title>"


def valued(name: str, value: float) -> str:
    """What a mark says when it is pointed at."""
    return f"{plain(name)}: {figure(value)}"
