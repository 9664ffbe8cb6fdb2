from __future__ import annotations

import re
from html.parser import HTMLParser

from gritkit_serve.app import PUBLIC
from tests.serve.serving import Running

VOID = {"meta", "td", "th", "br"}


class Read(HTMLParser):
    """What a page links to and holds; complains of tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.links: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links |= {value for name, value in attrs if name in ("href", "src") and value}
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def operation(running: Running, method: str, path: str) -> str:
    """What the page says about one."""
    with running.client() as client:
        page = client.get("/docs").text
    return page.partition(f"<b>{method}</b> <code>{path}</code>")[2].partition("</details>")[0]


def table(text: str, title: str) -> list[str]:
    """The names in a table with this title."""
    rows = text.partition(f"<table><tr><th>{title}<th>")[2].partition("</table>")[0]
    return re.findall(r"<tr><td><code>(\w+)</code>", rows)


def test_every_route_and_object_can_be_read(loading: Running) -> None:
    with loading.client() as client:
        page, document = client.get("/docs"), client.get("/openapi.json").json()
    assert page.status_code == 200
    read = Read()
    read.feed(page.text)
    assert not read.open
    for path, item in document["paths"].items():
        assert f"<code>{path}</code>" in page.text
        assert item
    assert read.ids == list(document["components"]["schemas"])
    assert read.links == {"openapi.json", *(link for link in read.links if link.removeprefix("#") in read.ids)}
    assert {"/v1/chat/completions", "/v1/embeddings", "/health"} <= set(document["paths"])


def test_parameters_stand_where_they_are_given(loading: Running) -> None:
    listing = operation(loading, "GET", "/v1/kb/{name}/documents")
    assert table(listing, "In the path") == ["name"]
    assert table(listing, "In the query") == ["after", "limit"]
    adding = operation(loading, "POST", "/v1/kb/{name}/documents")
    assert table(adding, "In the path") == ["name"]
    assert table(adding, "In the query") == ["stream"]


def test_the_fields_of_an_upload_can_be_read(loading: Running) -> None:
    adding = operation(loading, "POST", "/v1/kb/{name}/documents")
    assert table(adding, "Fields") == ["files", "jsonl_field"]
    assert "<code>files</code><td>list of file<td>" in adding


def test_it_says_which_of_its_routes_need_a_key(loading: Running) -> None:
    with loading.client() as client:
        page, document = client.get("/docs").text, client.get("/openapi.json").json()
    (said,) = re.findall(r"every route here but (\S+) and (\S+) needs the header", page)
    assert set(said) == {path for path in document["paths"] if PUBLIC.fullmatch(path)}


def test_it_runs_nothing_and_loads_nothing(loading: Running) -> None:
    with loading.client() as client:
        page = client.get("/docs")
    read = Read()
    read.feed(page.text)
    assert not read.tags & {"script", "link", "img", "iframe"}
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert not re.search(r"https?://", page.text)
