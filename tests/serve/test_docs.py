from __future__ import annotations

import re
from html.parser import HTMLParser

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


def test_it_runs_nothing_and_loads_nothing(loading: Running) -> None:
    with loading.client() as client:
        page = client.get("/docs")
    read = Read()
    read.feed(page.text)
    assert not read.tags & {"script", "link", "img", "iframe"}
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert not re.search(r"https?://", page.text)
