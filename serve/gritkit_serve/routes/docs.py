"""The API as a page to read at /docs, made of the same document as /openapi.json.

Without scripts, and without anything from elsewhere: the usual pages for this load megabytes of code from a third
party, which would then run where it can reach this server. This module knows nothing about what the routes do.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; }
details { border: 1px solid #8886; border-radius: .4rem; margin: .4rem 0; padding: .3rem .8rem; }
summary { cursor: pointer; overflow-wrap: anywhere; }
summary b { display: inline-block; min-width: 4.5rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
td, th { border-bottom: 1px solid #8884; padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
p { white-space: pre-line; }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
_REF = "#/components/schemas/"


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    """The page."""
    return HTMLResponse(page_of(request.app.openapi()), headers=_HEADERS)


def page_of(document: Mapping[str, Any]) -> str:
    """An OpenAPI document as HTML."""
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    operations = [
        (method.upper(), path, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
    ]
    parts = [
        f"<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{title}</title><style>{_STYLE}</style></head><body><h1>{title}</h1>",
        _text(document["info"].get("description", "")),
        "<p>The same for programs: <a href=openapi.json>openapi.json</a>. Where the server has API keys, every route "
        "here but /health and /ready needs the header <code>Authorization: Bearer KEY</code>.</p><h2>Routes</h2>",
        *(_operation(*operation) for operation in operations),
        "<h2>Objects</h2>",
        *(_object(name, schema) for name, schema in document["components"]["schemas"].items()),
        "</body></html>",
    ]
    return "\n".join(parts)


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    summary = escape(operation.get("summary", ""))
    parts = [
        f"<details><summary><b>{method}</b> <code>{escape(path)}</code> {summary}</summary>",
        _text(operation.get("description", "")),
    ]
    parts += _parameters(operation.get("parameters", ()))
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        parts += _body(kind, content.get("schema", {}))
    for status, response in operation["responses"].items():
        for kind, content in response.get("content", {}).items():
            if status.startswith("2"):
                parts.append(f"<p>{status}: <code>{escape(kind)}</code>: {_type(content.get('schema', {}))}</p>")
    failures = [status for status in operation["responses"] if not status.startswith("2")]
    if failures:
        parts.append(f"<p>Else {', '.join(failures)}: <a href='#ErrorResponse'>ErrorResponse</a></p>")
    return "\n".join([*parts, "</details>"])


def _parameters(parameters: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A table for each place that they stand in: the path, the query."""
    for place in dict.fromkeys(one["in"] for one in parameters):
        rows = [
            _row(one["name"], one["schema"], one.get("required", False), one.get("description"))
            for one in parameters
            if one["in"] == place
        ]
        yield _table(f"In the {escape(place)}", rows)


def _body(kind: str, schema: Mapping[str, Any]) -> Iterator[str]:
    """The fields of one that is no object with a name stand here."""
    yield f"<p>Takes <code>{escape(kind)}</code>: {_type(schema)}</p>"
    if fields := _fields(schema):
        yield fields


def _object(name: str, schema: Mapping[str, Any]) -> str:
    inside = _fields(schema) or f"<p>{_type(schema)}</p>"
    text = _text(schema.get("description", ""))
    return f"<details id='{escape(name)}' open><summary><code>{escape(name)}</code></summary>{text}{inside}</details>"


def _fields(schema: Mapping[str, Any]) -> str:
    """A table; empty for what has none."""
    required = schema.get("required", ())
    rows = [_row(field, inner, field in required, None) for field, inner in schema.get("properties", {}).items()]
    return _table("Fields", rows) if rows else ""


def _table(title: str, rows: list[str]) -> str:
    return f"<table><tr><th>{title}<th>Type<th>Meaning</tr>{''.join(rows)}</table>"


def _row(name: str, schema: Mapping[str, Any], required: bool, description: str | None) -> str:
    meaning = escape(description or schema.get("description") or "")
    if "default" in schema and schema["default"] is not None:
        meaning += f" Default: <code>{escape(repr(schema['default']))}</code>."
    mark = "" if required else " <small>optional</small>"
    return f"<tr><td><code>{escape(name)}</code>{mark}<td>{_type(schema)}<td>{meaning}</tr>"


def _type(schema: Mapping[str, Any]) -> str:
    """What a value may be, in words."""
    if ref := schema.get("$ref"):
        name = escape(ref.removeprefix(_REF))
        return f"<a href='#{name}'>{name}</a>"
    if "const" in schema or "enum" in schema:
        return ", ".join(f"<code>{escape(repr(one))}</code>" for one in schema.get("enum", [schema.get("const")]))
    if several := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(_type(one) for one in several))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if schema.get("format") == "binary":
        return "file"
    return " ".join([escape(str(schema.get("type", "any"))), *_bounds(schema)])


def _bounds(schema: Mapping[str, Any]) -> Iterator[str]:
    signs = {"minimum": "≥", "maximum": "≤", "exclusiveMinimum": "&gt;", "exclusiveMaximum": "&lt;"}
    for name, sign in signs.items():
        if name in schema:
            yield f"{sign} {schema[name]}"


def _text(text: str) -> str:
    return f"<p>{escape(text)}</p>" if text else ""
