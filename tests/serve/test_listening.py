from __future__ import annotations

import contextlib
import socket

import pytest

from gritkit.errors import InputError
from gritkit_serve.listening import address_of, bind


def test_an_address_reads_as_what_a_client_opens() -> None:
    with contextlib.closing(bind("localhost", 0)) as listener:
        port = listener.getsockname()[1]
        assert port > 0
        assert address_of(listener) in (f"http://127.0.0.1:{port}", f"http://[::1]:{port}")


def test_an_ipv6_address_stands_in_brackets() -> None:
    try:
        listener = bind("::1", 0)
    except InputError:
        pytest.skip("this machine has no IPv6")
    with contextlib.closing(listener):
        assert address_of(listener) == f"http://[::1]:{listener.getsockname()[1]}"


def test_what_cannot_be_listened_on_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            InputError, match=rf"cannot listen on 127.0.0.1 port {port}: Address already in use; give an"
        ):
            bind("127.0.0.1", port)
    with pytest.raises(InputError, match=r"cannot listen on 192.0.2.1 port 0"):
        bind("192.0.2.1", 0)
    with pytest.raises(InputError, match=r"--host 'no host': "):
        bind("no host", 0)
