"""What a server must have before it opens: a key where others can reach it, origins that are origins, usable keys.

This module knows nothing about requests; it is light, so that a refusal comes before anything heavy is loaded.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from gritkit.errors import InputError
from gritkit.files import resolve
from gritkit_serve.logs import LOG

KEY_VARIABLE = "GRITKIT_API_KEY"
_MAX_KEY_FILE = 64 << 10
_SHORT_KEY = 16


def is_loopback(name: str) -> bool:
    """``localhost`` and the addresses that mean this machine; no name is looked up."""
    name = name.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


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


def salt_of(key: str) -> str:
    """Separates the caches of one key from those of others; the same in every process, and no way back to the key."""
    return hashlib.blake2b(key.encode(), digest_size=16, person=b"gritkit-salt").hexdigest()


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
