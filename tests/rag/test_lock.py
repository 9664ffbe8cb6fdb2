from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gritkit.errors import StoreError
from gritkit.rag.lock import FileLock, InUseError

HOLD = """
import sys
from pathlib import Path
from gritkit.rag.lock import FileLock
with FileLock(Path(sys.argv[1]), "kb").hold(alone=sys.argv[2] == "alone", wait_s=0):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(path: Path, how: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, path, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def ended(process: subprocess.Popen[str]) -> None:
    process.communicate()


def test_writers_share_and_one_who_needs_it_alone_waits(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "new" / ".lock", "kb")
    with (
        lock.hold(alone=False, wait_s=0),
        lock.hold(alone=False, wait_s=0),
        pytest.raises(InUseError),
        lock.hold(alone=True, wait_s=0),
    ):
        pass
    with lock.hold(alone=True, wait_s=0), pytest.raises(InUseError), lock.hold(alone=False, wait_s=0.02):
        pass
    with lock.hold(alone=True, wait_s=0):
        pass


@pytest.mark.parametrize(("theirs", "mine"), [("alone", False), ("alone", True), ("shared", True)])
def test_another_process_is_named(tmp_path: Path, theirs: str, mine: bool) -> None:
    lock = FileLock(tmp_path / ".lock", "kb")
    process = holder(tmp_path / ".lock", theirs)
    try:
        who = f"process {process.pid} " if os.path.exists("/proc/locks") else "another process"
        with (
            pytest.raises(InUseError, match=f"kb is in use: {who}.* for more than 0 s"),
            lock.hold(alone=mine, wait_s=0),
        ):
            pass
        process.kill()  # and the lock is free
        process.wait()
        with lock.hold(alone=True, wait_s=10):
            pass
    finally:
        ended(process)


def test_waiting_ends_when_it_is_free(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / ".lock", "kb")
    begun, got = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        with lock.hold(alone=False, wait_s=30):
            got.set()

    with lock.hold(alone=True, wait_s=0):
        thread = threading.Thread(target=wait)
        thread.start()
        assert begun.wait(10)
        assert not got.wait(0.05)
    thread.join(10)
    assert got.is_set()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StoreError, match="cannot write to kb: "),
        FileLock(tmp_path / "file" / ".lock", "kb").hold(alone=True, wait_s=0),
    ):
        pass
