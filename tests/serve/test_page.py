from __future__ import annotations

import http.client
import re
from importlib.resources import files
from pathlib import PurePosixPath

import pytest

from gritkit_serve.routes.page import FILES
from tests.serve.serving import Running


def raw(server: Running, path: str, method: str = "GET") -> http.client.HTTPResponse:
    """A request whose path goes over the wire as it is; clients tidy it up first."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request(method, path)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response


def test_the_page_needs_no_model_and_says_what_it_is(loading: Running) -> None:
    with loading.client() as client:
        page = client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.text.startswith("<!doctype html>")


@pytest.mark.parametrize("path", ["/", *(f"/static/{name}" for name in FILES)])
def test_every_file_comes_with_its_type_and_strict_headers(loading: Running, path: str) -> None:
    with loading.client() as client:
        response = client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"] == FILES[PurePosixPath(path).name or "index.html"]
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["object-src"] == "'none'"
    assert "unsafe" not in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"


def test_what_is_listed_is_what_there_is() -> None:
    assert {entry.name for entry in (files("gritkit_serve") / "page").iterdir()} == set(FILES)


def test_the_page_loads_only_what_is_listed() -> None:
    folder = files("gritkit_serve") / "page"
    linked = re.findall(r'(?:src|href)="(?!#)([^"]+)"', (folder / "index.html").read_text())
    assert set(linked) == {"static/icon.svg", "static/style.css", "static/main.js"}
    for name in FILES:
        text = (folder / name).read_text()
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|@import", text), name
        if name.endswith(".js"):
            assert {f"{one}.js" for one in re.findall(r'from "\./([a-z]+)\.js"', text)} <= set(FILES)


def test_nothing_inline_in_the_page() -> None:
    text = (files("gritkit_serve") / "page" / "index.html").read_text()
    assert re.findall(r"<script[^>]*>", text) == ['<script type="module" src="static/main.js">']
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=", text)


@pytest.mark.parametrize(
    "path",
    [
        "/static/",
        "/static/page.py",
        "/static/__init__.py",
        "/static/../routes/page.py",
        "/static/..%2froutes%2fpage.py",
        "/static/%2e%2e/routes/page.py",
        "/static/..%5croutes%5cpage.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/style.css/",
        "/static/style.css%00.js",
        "/static/STYLE.CSS",
        "/index.html",
    ],
)
def test_no_other_file_is_served(loading: Running, path: str) -> None:
    assert raw(loading, path).status == 404


def test_a_browser_that_has_a_file_is_told_so(loading: Running) -> None:
    with loading.client() as client:
        first = client.get("/static/main.js")
        etag = first.headers["etag"]
        known = [
            client.get("/static/main.js", headers={"if-none-match": tags}) for tags in (etag, f'"x", W/{etag}', "*")
        ]
        other = client.get("/static/main.js", headers={"if-none-match": '"x"'})
        page = client.get("/", headers={"if-none-match": etag})
    assert [response.status_code for response in known] == [304, 304, 304]
    assert all(response.content == b"" and response.headers["etag"] == etag for response in known)
    assert first.headers["cache-control"] == known[0].headers["cache-control"] == "no-cache"
    assert "content-security-policy" in known[0].headers
    assert other.status_code == page.status_code == 200
    assert other.content == first.content


def test_by_head_it_has_the_same_headers_and_no_body(loading: Running) -> None:
    with loading.client() as client:
        for path in ("/", "/static/style.css"):
            got, head = client.get(path), client.head(path)
            assert head.status_code == 200
            assert head.content == b""
            for name in ("etag", "content-type", "content-length", "content-security-policy"):
                assert head.headers[name] == got.headers[name]


def test_the_page_takes_nothing(loading: Running) -> None:
    assert raw(loading, "/", "POST").status == 405
    assert raw(loading, "/static/main.js", "DELETE").status == 405


def test_the_page_is_no_part_of_the_api(loading: Running) -> None:
    with loading.client() as client:
        paths = client.get("/openapi.json").json()["paths"]
    assert not [path for path in paths if path == "/" or path.startswith("/static")]
