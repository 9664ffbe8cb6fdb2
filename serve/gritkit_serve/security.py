"""Who may ask. With API keys: whoever has one, from anywhere. Without: programs of this machine, and no web page.

A server without a key listens on loopback only, but a browser on the same machine can be sent there by any page it
visits: by the address itself, or by a name that was made to point to it (DNS rebinding). So without a key a request
must name a loopback host, and an ``Origin`` must be one that was allowed. With a key neither matters: a page has no
key.

This module knows nothing about routes but which ones are public, and nothing about what is asked.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gritkit_serve.access import KEY_VARIABLE, is_loopback, salt_of
from gritkit_serve.calls import Call
from gritkit_serve.errors import HttpError


class Guard:
    """ASGI middleware: refuses whoever may not ask, and notes whose caches may serve the others."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        api_keys: Sequence[str],
        allow_origins: Sequence[str],
        public: Callable[[str], bool],
    ) -> None:
        self._app = app
        self._keys = Keys(api_keys) if api_keys else None
        self._allow_origins = frozenset(allow_origins)
        self._public = public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if self._keys is None:
                self._check_local(headers)
            elif not (scope["method"] in ("GET", "HEAD") and self._public(scope["path"])):
                call: Call = scope["state"]["call"]
                call.salt = self._salt(self._keys, headers)
        await self._app(scope, receive, send)

    def _check_local(self, headers: Headers) -> None:
        for host in headers.getlist("host"):
            if not is_loopback(_without_port(host)):
                raise HttpError(
                    f"the host {host[:100]!r} is not this machine: a server without an API key answers to localhost "
                    f"only; set {KEY_VARIABLE} to serve others",
                    status=403, code="foreign_host",
                )  # fmt: skip
        for origin in headers.getlist("origin"):
            if origin not in self._allow_origins and not is_loopback(_host_of(origin)):
                raise HttpError(
                    f"a web page of {origin[:100]!r} may not use this server: start it with --allow-origin ORIGIN, or "
                    "with an API key",
                    status=403, code="foreign_origin",
                )  # fmt: skip

    @staticmethod
    def _salt(keys: Keys, headers: Headers) -> str:
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        salt = keys.salt_of(given) if given else None
        if salt is None:
            what = "that API key is not one of this server's" if given else "this server needs an API key"
            raise HttpError(
                f"{what}: send the header 'Authorization: Bearer KEY'",
                status=401, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        return salt


class Keys:
    """Compares in a time that says nothing about the keys: digests under a secret of this process, always all."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._secret = secrets.token_bytes(32)
        self._known = [(self._digest(key), salt_of(key)) for key in keys]

    def salt_of(self, given: str) -> str | None:
        """The salt of a key's caches, None for a key that there is not."""
        digest, found = self._digest(given), None
        for known, salt in self._known:
            if hmac.compare_digest(known, digest):
                found = salt
        return found

    def _digest(self, key: str) -> bytes:
        return hashlib.blake2b(key.encode(), key=self._secret).digest()


# -- hosts and origins -------------------------------------------------------------------------------------------------


def _without_port(host: str) -> str:
    """Of a ``Host`` header."""
    host = host.strip()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _host_of(origin: str) -> str:
    """The host of an ``Origin`` header; empty for ``null`` and what is no origin."""
    try:
        return urlsplit(origin).hostname or ""
    except ValueError:
        return ""
