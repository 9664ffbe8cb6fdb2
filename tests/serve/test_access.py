from __future__ import annotations

import logging
from pathlib import Path

import pytest

from gritkit.errors import InputError
from gritkit_serve.access import check_host, check_origins, is_loopback, read_keys
from gritkit_serve.settings import Settings

KEY, OTHER = "key-of-the-first-tenant", "key-of-the-second-tenant"
PAGE = "https://app.example.org"


@pytest.mark.parametrize("name", ["127.0.0.1", "::1", "localhost", "localhost.", "a.localhost", "127.255.0.1"])
def test_loopback(name: str) -> None:
    assert is_loopback(name)
    check_host(name, keyed=False)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "192.168.1.5", "example.org", "localhost.example.org", "127.0.0.1 "]
)
def test_an_open_address_needs_a_key(host: str) -> None:
    with pytest.raises(InputError, match="needs an API key: set GRITKIT_API_KEY"):
        check_host(host, keyed=False)
    check_host(host, keyed=True)


def test_origins_are_checked_at_the_start() -> None:
    check_origins([PAGE, "http://localhost:3000"], keyed=False)
    check_origins(["*"], keyed=True)
    with pytest.raises(InputError, match="lets any web page"):
        check_origins(["*"], keyed=False)
    for wrong in ("example.org", "https://example.org/", "https://example.org/a", "ftp://example.org", "", "null"):
        with pytest.raises(InputError, match="must be like https://example"):
            check_origins([wrong], keyed=True)


# -- keys on disk ------------------------------------------------------------------------------------------------------


def test_keys_come_from_the_file_or_else_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# first\n{KEY}\n\n  {OTHER}  \n{KEY}\n")
    file.chmod(0o600)
    assert read_keys(file, {"GRITKIT_API_KEY": "x" * 20}) == (KEY, OTHER)
    assert read_keys(None, {"GRITKIT_API_KEY": f" {KEY}\n"}) == (KEY,)
    assert read_keys(None, {"GRITKIT_API_KEY": ""}) == read_keys(None, {}) == ()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "has no key"), (b"# none\n\n", "has no key"), (b"a key\n", "API key 1 has a space"),
        ("schlüssel\n".encode(), "API key 1"), (b"\xff\xfe", "is not a text file"),
        (b"k" * 70_000, "larger than 64 KiB"),
    ],
)  # fmt: skip
def test_a_file_without_usable_keys_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(InputError, match=says) as raised:
        read_keys(file)
    assert "a key" not in str(raised.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_keys(tmp_path / "keys")


def test_what_others_can_read_or_guess_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys"
    file.write_text("short\n")
    file.chmod(0o644)
    log = logging.getLogger("gritkit.serve")
    log.addHandler(caplog.handler)
    try:
        assert read_keys(file) == ("short",)
    finally:
        log.removeHandler(caplog.handler)
    assert "chmod 600" in caplog.text
    assert "API key 1 has 5 characters" in caplog.text
    assert "short" not in caplog.text


def test_keys_are_not_shown() -> None:
    assert KEY not in repr(Settings(api_keys=(KEY,)))
