"""The page at ``/`` and the files that it is made of, under ``/static/``: public, without data of their own.

Only what ``FILES`` lists is served, from the installed package and read once, so that no request names a path on the
disk. The headers let the page run and show what came from this server and nothing else: no inline script or style, no
frame around it, and in browsers with trusted types no text that becomes markup.

This module knows nothing about models, keys or what the page does.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from importlib.resources import files

from fastapi import APIRouter, Request, Response

from gritkit_serve.errors import NotFoundError

HTML, CSS, SCRIPT, SVG = (
    "text/html; charset=utf-8",
    "text/css; charset=utf-8",
    "text/javascript; charset=utf-8",
    "image/svg+xml",
)
FILES = {
    "index.html": HTML,
    "style.css": CSS,
    "icon.svg": SVG,
    "answers.js": SCRIPT,
    "api.js": SCRIPT,
    "ask.js": SCRIPT,
    "bases.js": SCRIPT,
    "chat.js": SCRIPT,
    "dom.js": SCRIPT,
    "main.js": SCRIPT,
    "playground.js": SCRIPT,
    "plot.js": SCRIPT,
    "projection.js": SCRIPT,
}
"""Everything that is served, with its type."""

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",  # forms are sent by the page's own code, or not at all
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # kept, and asked after each time: a new release must not run with old modules
}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class _File:
    content: bytes
    type: str
    etag: str


@functools.cache
def _file(name: str) -> _File:
    content = (files("gritkit_serve") / "page" / name).read_bytes()
    return _File(content, FILES[name], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


@router.get("/")
@router.head("/")
def page(request: Request) -> Response:
    """The page."""
    return _answer(request, "index.html")


@router.get("/static/{name:path}")
@router.head("/static/{name:path}")
def static(request: Request, name: str) -> Response:
    """A file of the page."""
    if name not in FILES:
        raise NotFoundError("the page has no such file")
    return _answer(request, name)


def _answer(request: Request, name: str) -> Response:
    """The file, or 304 where the browser has it already."""
    file = _file(name)
    headers = {**HEADERS, "ETag": file.etag}
    if _knows(request.headers.get("if-none-match", ""), file.etag):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.type)


def _knows(if_none_match: str, etag: str) -> bool:
    """Whether a list of entity tags has this one. A proxy that compressed the file made its tag a weak one."""
    return any(one.strip().removeprefix("W/") in (etag, "*") for one in if_none_match.split(","))
