"""What no client of good will sends: bodies that are not JSON or not what a route takes, bytes that are not HTTP."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

ROUTES = (
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank", "/tokenize", "/v1/kb",
    "/v1/kb/{kb}/documents", "/v1/kb/{kb}/search", "/v1/kb/{kb}/ask", "/v1/kb/..%2f..%2fetc/ask", "/v1/kb/%00/search",
    "/v1/no/such/route",
)  # fmt: skip
"""That take a POST, or would."""

Make = Callable[[random.Random], bytes]


def _noise(rng: random.Random) -> bytes:
    return rng.randbytes(rng.randint(1, 4096))


def _cut(rng: random.Random) -> bytes:
    whole = json.dumps({"messages": [{"role": "user", "content": "a" * 200}], "input": ["b"] * 20}).encode()
    return whole[: rng.randint(1, len(whole) - 1)]


def _turned(rng: random.Random) -> bytes:
    """One byte of valid JSON is another, and none of it is a request."""
    whole = bytearray(json.dumps({"unknown": list(range(50)), "text": "é"}).encode())
    whole[rng.randrange(len(whole))] = rng.randrange(256)
    return bytes(whole)


def _nested(rng: random.Random) -> bytes:
    left, right = rng.choice([(b"[", b"]"), (b'{"a":', b"}")])
    depth = rng.choice([65, 1000, 100_000])
    return left * depth + b"1" + right * rng.choice([0, depth])


def _many(rng: random.Random) -> bytes:
    return b"[" + b"[]," * rng.choice([1000, 200_000]) + b"1]"


def _wrong_values(rng: random.Random) -> bytes:
    value: Any = rng.choice([None, True, -1, 10**30, 1.5, "x", [], {}, [[[]]], {"a": {"b": []}}, "\ud800", "\x00"])
    field = rng.choice(["messages", "input", "prompt", "query", "question", "documents", "name", "max_tokens", "top_k"])
    other = {"unheard_of": value}
    return json.dumps(rng.choice([{field: value, **other}, [value], value])).encode()


def _literal(rng: random.Random) -> bytes:
    return rng.choice([
        b"", b"{", b"nul", b'{"a": NaN}', b'{"a": Infinity}', b'{"a": 1e999}', b"1" * 6000, b'{"a": 1, "a": 2}',
        b'\xef\xbb\xbf{"input": "a", "b": 1}', b'{"input": "\xff"}', b'{"model": "\\ud800", "input": "a"}',
        b'{"input": "a"} {"input": "b"}',
    ])  # fmt: skip


BODIES: tuple[Make, ...] = (_noise, _cut, _turned, _nested, _many, _wrong_values, _literal)
"""None of them is a request of any route."""


def _no_http(rng: random.Random) -> bytes:
    return rng.randbytes(rng.randint(1, 300)) + b"\r\n\r\n"


def _long_header(rng: random.Random) -> bytes:
    return b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * rng.choice([40_000, 1 << 20]) + b"\r\n\r\n"


def _many_headers(rng: random.Random) -> bytes:
    lines = b"".join(b"X-%d: y\r\n" % number for number in range(5000))
    return b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + lines + b"\r\n"


def _lying_length(rng: random.Random) -> bytes:
    length = rng.choice([b"-1", b"x", b"99999999999999999999", b"5\r\nTransfer-Encoding: chunked"])
    return b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + length + b"\r\n\r\n{}"


def _half(rng: random.Random) -> bytes:
    return b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Le"


RAW: tuple[Make, ...] = (_no_http, _long_header, _many_headers, _lying_length, _half)
