from __future__ import annotations

import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from gritkit.rag.outline import MAX_HEADINGS, Borders, joined

DOCUMENT = """---
title: not a heading
---
Guide
=====

Words.

## Install ##
### On Linux

```sh
# a comment, no heading
```

<!--
# neither is this
-->

Two lines of
a paragraph
---

## Use

Short
-----
- a list
---
end
"""


def trails(text: str, kind: str = "markdown") -> dict[str, tuple[str, ...]]:
    """The trail of every line that is its own heading or stands under one."""
    borders = Borders(text, kind)
    return {line: borders.trail(text.index(line)) for line in text.splitlines() if line.strip()}


def test_headings_are_found_and_nothing_else() -> None:
    found = trails(DOCUMENT)
    assert found["title: not a heading"] == ()
    assert found["Words."] == ("Guide",)
    assert found["# a comment, no heading"] == ("Guide", "Install", "On Linux")
    assert found["# neither is this"] == found["a paragraph"] == ("Guide", "Install", "On Linux")
    assert found["## Use"] == ("Guide", "Use")
    assert found["- a list"] == found["end"] == ("Guide", "Short")
    assert set(trails(DOCUMENT, "text").values()) == {()}


def test_only_so_many_headings_are_kept_and_what_follows_has_none() -> None:
    line = "## a\n"
    text = "# Title\n" + line * (2 * MAX_HEADINGS) + "the end"
    borders = Borders(text, "markdown")
    last = len("# Title\n") + (MAX_HEADINGS - 2) * len(line)
    assert borders.trail(last) == borders.trail(last + 2) == ("Title", "a")
    for position in (last + len(line), last + 2 * len(line), len(text) - 1):
        assert borders.trail(position) == ()
    assert borders.is_heading(last)
    assert not borders.is_heading(last + 2 * len(line))
    assert borders.strongest(last + len(line), len(text))[-1] == len(text) - len("the end")  # lines, as of any text


def test_the_strongest_border_wins() -> None:
    text = "# A\none. two\nthree\n\nfour\n## B\nfive\n"
    borders = Borders(text, "markdown")
    assert borders.strongest(0, len(text)) == [text.index("## B")]
    assert Borders(text, "text").strongest(0, len(text)) == [text.index("four")]
    assert borders.strongest(0, text.index("\nthree")) == [text.index("one")]
    assert borders.strongest(5, text.index("\nthree")) == [text.index("two")]
    assert borders.strongest(text.index("three"), text.index("three") + 4) == []


def test_code_is_cut_before_the_least_indented_line() -> None:
    text = "class A:\n    def f(self):\n        x = 1\n\n        y = 2\n\n    def g(self):\n        pass\n}\nB = 1\n"
    borders = Borders(text, "code:python")
    inside = text.index("\n}")
    assert borders.strongest(10, inside) == [text.index("    def g")]
    assert borders.strongest(10, len(text)) == [text.index("B = 1")]


def test_indentation_is_kept_and_long_runs_of_space_are_not() -> None:
    assert Borders("a\n\n    b", "text").next_part(1) == 3
    assert Borders("a   b", "text").next_part(1) == 4
    assert Borders("a\n" + " " * 1000 + "b", "text").next_part(1) == 1002
    assert Borders("  a", "text").next_part(0) == 0


PARTS = [
    "e",
    "\u0301",
    "\u200d",
    "\ufe0f",
    "👩",
    "🏽",
    "🇩",
    "🇪",
    "한",
    "ᄒ",
    "ᅡ",
    "ᆫ",
    "하",
    "東",
    "\r",
    "\n",
    " ",
    "ा",
    "क",
]


def visible(text: str) -> set[int]:
    return {match.end() for match in regex.finditer(r"\X", text)} - {len(text)}


def cuts(text: str) -> set[int]:
    return {place for place in range(1, len(text)) if not joined(text, place)}


@settings(max_examples=300)
@given(st.lists(st.sampled_from(PARTS), min_size=2, max_size=12).map("".join))
def test_no_visible_character_is_cut(text: str) -> None:
    assert cuts(text) <= visible(text)


def test_visible_characters_of_real_writing() -> None:
    for text in (
        "cafe\u0301 au lait",
        "👩🏽‍🔬🇩🇪🇫🇷👨‍👩‍👧❤️",
        "한국어 한국어",
        "東京は首都。",
        "a\r\nb",
        "हिन्दी भाषा".replace("न्द", ""),
    ):
        assert cuts(text) == visible(text)
