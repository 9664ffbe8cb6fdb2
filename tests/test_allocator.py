from __future__ import annotations

import subprocess
import sys

import pytest

from gritkit.allocator import keep_large_buffers, return_free_memory


def test_it_is_set_once_and_tells_whether(monkeypatch: pytest.MonkeyPatch) -> None:
    assert keep_large_buffers() is keep_large_buffers()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_large_buffers.__wrapped__() is False
    assert return_free_memory() is False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_a_c_library_without_mallopt_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert keep_large_buffers.__wrapped__() is False
    assert return_free_memory() is False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc keeps what is freed")
def test_what_was_freed_is_given_back() -> None:
    """Small pieces between others that stay: free again, they are inside the heap, not at its end."""
    code = (
        "from pathlib import Path; from gritkit.allocator import return_free_memory\n"
        "rss = lambda: int(Path('/proc/self/statm').read_text().split()[1]) * 4096\n"
        "held = [b'x' * (100_000 + one) for one in range(2000)]\n"
        "last = b'x' * 100_000; held.clear(); before = rss()\n"
        "print(return_free_memory(), before - rss() > 100 << 20)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True True\n"
