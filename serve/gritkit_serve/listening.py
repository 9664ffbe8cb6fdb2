"""The socket that a server listens on, taken before anything heavy is loaded: a port in use is known at once.

This module knows nothing about what is served on it.
"""

from __future__ import annotations

import os
import socket

from gritkit.errors import InputError

BACKLOG = 1024
"""Connections that wait to be accepted."""


def bind(host: str, port: int) -> socket.socket:
    """An address that is taken at once; who connects waits until the server accepts. Raises InputError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError(f"--host {host!r}: {error.strerror or error}") from error
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise InputError(f"cannot listen on {host} port {port}: {error.strerror}; give another --port") from error
    return listener


def address_of(listener: socket.socket) -> str:
    """``http://127.0.0.1:8000``"""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
