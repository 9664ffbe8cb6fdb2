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
import ipaddress
import os
import secrets
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gritkit.errors import InputError
from gritkit.files import resolve
from gritkit_serve.calls import Call
from gritkit_serve.errors import HttpError
from gritkit_serve.logs import LOG

KEY_VARIABLE = "GRITKIT_API_KEY"
_MAX_KEY_FILE = 64 << 10
_SHORT_KEY = 16


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
            if origin not in self._allow_origins and not is_loopback(urlsplit_host(origin)):
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


def salt_of(key: str) -> str:
    """Separates the caches of one key from those of others; the same in every process, and no way back to the key."""
    return hashlib.blake2b(key.encode(), digest_size=16, person=b"gritkit-salt").hexdigest()


# -- hosts and origins -------------------------------------------------------------------------------------------------


def is_loopback(name: str) -> bool:
    """``localhost`` and the addresses that mean this machine; no name is looked up."""
    name = name.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _without_port(host: str) -> str:
    """Of a ``Host`` header."""
    host = host.strip()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def urlsplit_host(origin: str) -> str:
    """The host of an ``Origin`` header; empty for ``null`` and what is no origin."""
    try:
        return urlsplit(origin).hostname or ""
    except ValueError:
        return ""


def check_origins(origins: Sequence[str], *, keyed: bool) -> None:
    """Raises InputError for what is no origin, and for all origins on a server that anybody may ask."""
    for origin in origins:
        if origin == "*":
            if not keyed:
                raise InputError(
                    f"--allow-origin '*' without an API key lets any web page use this server: set {KEY_VARIABLE} or "
                    "name the origins"
                )
            continue
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or not parts.hostname or origin != f"{parts.scheme}://{parts.netloc}":
            raise InputError(
                f"--allow-origin {origin!r} must be like https://example.org: no path, no slash at the end"
            )


def check_host(host: str, *, keyed: bool) -> None:
    """Raises InputError for an address that others can reach, when there is no key to keep them out."""
    if not keyed and not is_loopback(host):
        raise InputError(
            f"--host {host!r} can be reached from other machines and needs an API key: set {KEY_VARIABLE} or give "
            "--api-key-file"
        )


# -- keys --------------------------------------------------------------------------------------------------------------


def read_keys(file: Path | None, environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The keys of a file, one a line ('#' begins a comment), else the one of GRITKIT_API_KEY, else none.

    Raises:
        InputError: for a file that cannot be read or has no key, and for a key that no header can carry.
    """
    keys = _keys_of(file) if file is not None else tuple(filter(None, [environment.get(KEY_VARIABLE, "").strip()]))
    for number, key in enumerate(keys, 1):
        if not key.isascii() or not key.isprintable() or " " in key:
            raise InputError(f"API key {number} has a space or a character that is not printable ASCII")
        if len(key) < _SHORT_KEY:
            LOG.warning("API key %d has %d characters: at least %d are hard to guess", number, len(key), _SHORT_KEY)
    return keys


def _keys_of(file: Path) -> tuple[str, ...]:
    path = resolve(file)
    try:
        with path.open("rb") as opened:
            if os.name == "posix" and os.fstat(opened.fileno()).st_mode & stat.S_IROTH:
                LOG.warning("every user of this machine can read %s: chmod 600 keeps its keys", file)
            text = opened.read(_MAX_KEY_FILE + 1).decode()
    except OSError as error:
        raise InputError(f"--api-key-file {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--api-key-file {file} is not a text file") from error
    if len(text) > _MAX_KEY_FILE:
        raise InputError(f"--api-key-file {file} is larger than {_MAX_KEY_FILE >> 10} KiB: give one key a line")
    lines = (line.strip() for line in text.splitlines())
    keys = tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not keys:
        raise InputError(f"--api-key-file {file} has no key: write one a line")
    return keys
