from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
from selectolax.lexbor import LexborHTMLParser, LexborNode

from gritkit_eval.outcome import Outcome
from gritkit_eval.report.composition import Report, html, text, write_html, write_markdown
from gritkit_eval.report.export import as_json
from gritkit_eval.report.gathered import Gathered
from gritkit_eval.report.page import plot_style
from gritkit_eval.report.plots import unbeaten
from gritkit_eval.report.words import figure, markdown, plain
from tests.outcomes import outcome

HOSTILE = (
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a|b\n# c", "</title></style></svg>&lt;",
    "\u202eevil\x00", "[x](https://example.org) www.example.org **b** `c`", "\ud800half", "",
)  # fmt: skip
_VOID = {"meta", "br", "img", "hr", "input", "link"}


def several() -> list[Outcome]:
    """Two kinds in four types, three runs, one of them with gaps, and an efficiency sweep."""
    made = []
    for m, model in enumerate(("a", "b", "c")):
        for kind, task_type, num in (("mteb", "STS", 3), ("mteb", "Retrieval", 2), ("generation", "math", 2)):
            for t in range(num):
                score = 0.3 + 0.1 * m + 0.037 * t
                made.append(outcome(f"{task_type} {t}", model, score, kind=kind, task_type=task_type))
    made = [one for one in made if (one.model, one.task) != ("c", "STS 2")]
    made += [
        outcome(
            f"{dim} dimensions", "a", kind="efficiency", task_type="efficiency", settings={"name": dim},
            scores={"q": dim**0.2 / 5, "bytes per vector": 4.0 * dim, "texts/s": 3.0, "x": math.nan}, metric="q",
        )
        for dim in (32, 128, 512)
    ]  # fmt: skip
    return made


def page_of(made: Sequence[Outcome], **given: str) -> str:
    report = Report(Gathered(made), **given)
    return html(report.title, report.lead, report.chapters())


class Balance(HTMLParser):
    """Whether every tag is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(page: str) -> None:
    """Closed, self-contained, one script."""
    parser = Balance()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    for name, value in parser.attributes:
        assert not name.startswith("on"), name
        if name in ("src", "href", "action", "srcset", "xlink:href", "data"):
            assert value is not None
            assert value.startswith("#"), value
    assert not re.search(r"url\(|@import", page)
    tree = LexborHTMLParser(page)
    (script,) = tree.css("script")
    digest = base64.b64encode(hashlib.sha256(script.text().encode()).digest()).decode()
    policy = tree.css("meta[http-equiv=Content-Security-Policy]")[0].attributes["content"]
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    assert tree.css("img, iframe, object, embed, link") == []
    ids = [node.attributes["id"] for node in tree.css("[id]")]
    assert len(ids) == len(set(ids))


def text_of(node: LexborNode, css: str) -> str:
    found = node.css_first(css)
    assert found is not None
    return found.text()


def tables(page: str) -> list[tuple[str, list[str], list[list[str]]]]:
    """Caption, column heads, rows of cells without their small notes."""
    tree = LexborHTMLParser(page)
    for small in tree.css("td small, th small"):
        small.decompose()
    return [
        (
            text_of(table, "caption"),
            [head.text() for head in table.css("thead th")],
            [[cell.text() for cell in row.css("th, td")] for row in table.css("tbody tr")],
        )
        for table in tree.css("table")
    ]


def test_the_page_needs_nothing_else_and_says_what_was_measured() -> None:
    made = several()
    page = page_of(made, title="Two models", baseline="a")
    check(page)
    shown = {caption: (heads, rows) for caption, heads, rows in tables(page)}
    heads, rows = shown["STS, spearman"]
    assert heads == ["Task", "a", "b", "c"]
    for task, *cells in rows:
        scores = {one.model: one.score for one in made if one.task == task and one.kind == "mteb"}
        assert cells == [figure(scores[model]) if model in scores else "n/a" for model in "abc"]
    heads, rows = shown["mteb: averages by task type"]
    assert heads == ["Run", "STS", "Retrieval", "Mean", "Mean"]
    assert [row[0] for row in rows] == ["c", "b", "a"]
    sts = {model: (0.3 + 0.1 * m + 0.3 + 0.1 * m + 0.037) / 2 for m, model in enumerate("abc")}
    assert [row[1] for row in rows] == [figure(sts[model]) for model in "cba"]
    assert "STS: <bdi>c</bdi> lacks 1 task" in page.replace("<bdi>STS</bdi>", "STS")
    assert f"{sts['b'] / sts['a']:.3f}x" in page
    assert len(shown["How it was made"][1]) == 9


def test_plots_say_their_values() -> None:
    tree = LexborHTMLParser(page_of(several()))
    labels = [node.attributes["aria-label"] for node in tree.css("figure > svg")]
    assert labels == [
        "Average of each task type, 3 runs", "STS by run", "Retrieval by run", "math by run",
        "efficiency against bytes per vector", "efficiency by run",
    ]  # fmt: skip
    titles = [node.text() for node in tree.css("svg title")]
    assert "a, Retrieval 1: 0.3370" in titles
    assert "a, average: 0.3185" in titles
    assert f"a · 32 dimensions: {32**0.2 / 5:.4f} at bytes per vector 128" in titles
    legends = [[item.text() for item in node.css("li bdi")] for node in tree.css("ul.legend")]
    assert legends == [["a", "b", "c"], ["a"]]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_only_names(name: str, tmp_path: Path) -> None:
    given = outcome(name, name, 0.5, task_type=name, version=name, machine=name, settings={name or "s": name})
    other = outcome("t", name, 0.6, kind=name or "k", task_type=name, scores={name: 0.6}, metric=name)
    odd = [given, other, outcome("t", "z", 0.4, fingerprint=name, task_type=name)]
    page = page_of(odd, title=name)
    check(page)
    assert text_of(LexborHTMLParser(page).css("header")[0], "h1") == plain(name)
    assert plain(name) in [row[0] for _, _, rows in tables(page) for row in rows]
    report = Report(Gathered(odd), title=name)
    write_html(tmp_path / "page.html", name, report.lead, report.chapters())
    write_markdown(tmp_path / "page.md", name, report.lead, report.chapters())
    for file in tmp_path.glob("page-plots/*.svg"):
        xml.etree.ElementTree.parse(file)
    for line in (tmp_path / "page.md").read_text(encoding="utf-8").splitlines():
        assert not re.search(r"(?<!\\)<|(?<!\\)https?:|(?<![\\\w])www\.", line), line
    json.dumps(as_json(report.gathered, report.groups, None), allow_nan=False)


def test_markdown_is_the_same_tables(tmp_path: Path) -> None:
    report = Report(Gathered(several()), title="T", baseline="a")
    path = write_markdown(tmp_path / "a report.md", "T", report.lead, report.chapters())
    written = path.read_text(encoding="utf-8")
    assert written.startswith("# T\n\n3 models in 6 runs, 8 tasks, measured 2026-01-02, against a.\n\n")
    assert "| STS 0 | 0.3000 | 0.4000 | **0.5000** |" in written
    links = re.findall(r"!\[.*?\]\((.*?)\)", written)
    assert links[0] == "a%20report-plots/1.svg"
    drawn = tmp_path / "a report-plots" / "1.svg"
    root = xml.etree.ElementTree.parse(drawn).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert plot_style().strip() in drawn.read_text(encoding="utf-8")
    assert len(links) == len(list(drawn.parent.iterdir()))
    columns = [line.count(" | ") for line in written.splitlines() if line.startswith("| ")]
    assert min(columns) >= 1


def test_the_line_of_a_plot_joins_what_nothing_beats() -> None:
    points = [(4.0, 0.5), (1.0, 0.3), (2.0, 0.2), (4.0, 0.4), (8.0, 0.5), (9.0, 0.6)]
    assert unbeaten(points, cheap=True, rising=True) == [(1.0, 0.3), (4.0, 0.5), (9.0, 0.6)]
    assert unbeaten(points, cheap=False, rising=True) == [(9.0, 0.6)]
    assert unbeaten(points, cheap=True, rising=False) == [(1.0, 0.3), (2.0, 0.2)]


def test_one_run_and_no_figures() -> None:
    check(page_of([outcome()]))
    page = page_of([outcome(score=math.nan), outcome("t", score=math.inf)])
    check(page)
    assert "n/a" in page
    assert "nan" not in re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL).lower()


def test_thousands_of_tasks() -> None:
    made = [outcome(f"task {t}", model, (t % 97) / 97) for t in range(3000) for model in ("a", "b")]
    page = page_of(made)
    check(page)
    assert len(LexborHTMLParser(page).css("svg circle.d")) == 0
    assert len(LexborHTMLParser(page).css("svg rect.box")) == 2
    assert len(tables(page)[1][2]) == 3000


def test_many_runs() -> None:
    page = page_of([outcome(t, f"m{m}", m / 60, task_type=t) for m in range(60) for t in ("x", "y")])
    check(page)
    assert "The 12 best of 60 runs." in page
    assert "The 40 best of 60 runs." in page


def test_names_on_one_line() -> None:
    assert [plain(name) for name in ("a|b\n# c", "\u202eevil\x00", "\ud800half", "", " a\u2028b ")] == [
        "a|b # c", "evil", "?half", "(no name)", "a b",
    ]  # fmt: skip


def test_numbers_as_they_are_read() -> None:
    shown = [figure(x) for x in (0.82034, -0.5, 0.0, 1.0, 12.345, 20.0, 123456.7, 0.00012, math.nan, -math.inf)]
    assert shown == ["0.8203", "-0.5000", "0.0000", "1.0000", "12.35", "20", "123,457", "1.2e-04", "n/a", "n/a"]
    assert markdown("multi_news _x_ a|b <i> &amp; R&D") == r"multi_news \_x\_ a\|b \<i\> &amp;amp; R&D"


def test_the_summary_alone_is_text() -> None:
    report = Report(Gathered(several()))
    shown = text([report.summary()])
    assert shown.startswith("## Summary\n\n### Embedding tasks\n\n| Run | STS (2 of 3 tasks) |")
    assert "![" not in shown


def test_reports_need_no_torch() -> None:
    code = (
        "import sys, gritkit_eval.report.composition, gritkit_eval.report.comparison, gritkit_eval.report.card; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
