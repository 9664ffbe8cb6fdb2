from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gritkit.allocator import keep_large_buffers, return_free_memory, share_heaps


def test_it_is_set_once_and_tells_whether(monkeypatch: pytest.MonkeyPatch) -> None:
    assert keep_large_buffers() is keep_large_buffers()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_large_buffers.__wrapped__() is False
    assert share_heaps.__wrapped__() is False
    assert return_free_memory() is False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_a_c_library_without_mallopt_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert keep_large_buffers.__wrapped__() is False
    assert share_heaps.__wrapped__() is False
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc has several heaps")
@pytest.mark.parametrize(("environment", "taken"), [({}, True), ({"MALLOC_ARENA_MAX": "8"}, False)])
def test_threads_share_few_heaps(environment: dict[str, str], taken: bool) -> None:
    """Threads that are there together: each would have a heap of its own, and says "in use" of it in glibc's report."""
    code = (
        "import ctypes, threading; from gritkit.allocator import share_heaps\n"
        "print(share_heaps(), flush=True)\n"
        "libc = ctypes.CDLL(None); libc.malloc.restype = ctypes.c_void_p; together = threading.Barrier(7)\n"
        "def use():\n libc.malloc(5000)\n together.wait()\n"
        "threads = [threading.Thread(target=use) for _ in range(6)]\n"
        "for one in threads: one.start()\n"
        "together.wait()\n"
        "libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, 'stdout'))\n"
        "libc.fflush(None)\n"
    )
    others = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**others, **environment}
    )
    assert done.stdout.startswith(f"{taken}\n")
    assert (done.stdout.count("<heap nr=") == 2) == taken
