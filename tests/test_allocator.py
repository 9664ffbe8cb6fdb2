from __future__ import annotations

import sys

import pytest

from gritkit.allocator import keep_large_buffers


def test_it_is_set_once_and_tells_whether(monkeypatch: pytest.MonkeyPatch) -> None:
    assert keep_large_buffers() is keep_large_buffers()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_large_buffers.__wrapped__() is False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_a_c_library_without_mallopt_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert keep_large_buffers.__wrapped__() is False
