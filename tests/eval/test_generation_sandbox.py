from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from gritkit.errors import InputError
from gritkit_eval.generation import sandbox
from gritkit_eval.generation.sandbox import ALL, Limits, Ran, missing, run

LINUX = sys.platform == "linux"
SHORT = Limits(seconds=1.5, memory=1 << 29, disk=1 << 20)


def needs(wall: str) -> None:
    if wall in missing():
        pytest.skip(f"this machine does not permit the wall {wall!r}")


@pytest.mark.parametrize(
    "program",
    [
        "",
        "assert 1 + 1 == 2",
        "import math, typing, re, collections, heapq, itertools, hashlib, dataclasses, datetime, random, string",
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\nassert A(1) == A(1)",
        "print('x' * 100000)",
        "open('mine', 'w').write('x')\nimport os\nassert os.listdir('.') == ['mine']",
        "try:\n    raise SystemExit(0)\nexcept SystemExit:\n    pass",
    ],
)
def test_what_reaches_its_end_has_passed(program: str) -> None:
    assert run(program).ending == "passed"


@pytest.mark.parametrize(
    "program",
    [
        "assert False",
        "def (",
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise KeyboardInterrupt",
        "import numpy",
        "def f(): return f()\nf()",
        "import sys\nsys.stdout.write('passed\\n' * 10)\nsys.exit(0)",
        "import os\nos.write(3, b'\\n' + b'0' * 32 + b'\\n')\nos._exit(0)",
        "import atexit\natexit.register(print)\nimport sys; sys.exit(0)",
        "import builtins, sys\nbuiltins.exec = lambda *_: None\nsys.exit(0)",
    ],
)
def test_what_leaves_early_has_not(program: str) -> None:
    assert run(program).ending == "failed"


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time; time.sleep(1000)",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "import sys\nwhile True: sys.stdout.write('x' * 100000)",
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass",
        "import os\nos.setsid() if os.getpid() != os.getsid(0) else None\nwhile True: pass",
    ],
)
def test_what_never_ends_is_ended(program: str) -> None:
    start = time.monotonic()
    assert run(program, SHORT).ending == "out of time"
    assert time.monotonic() - start < 10


def test_a_flood_into_the_answer_is_no_answer() -> None:
    program = "import os\nfor _ in range(10000): os.write(FD, b'y' * 1000)"
    assert not any(run(program.replace("FD", str(fd)), SHORT).passed for fd in range(3, 8))


def test_memory_is_bounded() -> None:
    assert run("x = bytearray(1 << 30)", SHORT).ending == "failed"
    assert run("x = bytearray(1 << 26)", SHORT).ending == "passed"


def test_files_are_bounded() -> None:
    assert run("f = open('big', 'wb')\nf.write(b'x' * (8 << 20))\nf.close()", SHORT).ending == "failed"


def test_nothing_of_the_caller_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    read = (
        "import os\nassert 'SECRET_TOKEN' not in os.environ and 'HOME' not in os.environ\nassert os.listdir('.') == []"
    )
    assert run(read).passed
    needs("read-only files")
    read = "import os\nfor p in ('self', str(os.getppid())):\n    assert not os.path.exists(f'/proc/{p}/environ')"
    assert run(read).passed


def test_no_process_is_started() -> None:
    needs("no processes")
    for call in ("os.fork()", "os.system('true')", "os.posix_spawn('/bin/true', ['true'], {})"):
        # os.system hides its failure in a status
        assert not run(f"import os\nassert {call} is None").passed
    assert run("import os\ntry:\n    os.fork()\nexcept OSError:\n    pass\nelse:\n    raise SystemExit").passed
    bomb = "import os\nfor _ in range(60):\n    try:\n        os.fork()\n    except OSError:\n        pass"
    start = time.monotonic()
    assert run(bomb, SHORT).passed
    assert time.monotonic() - start < 10
    if LINUX:
        assert not run(f"import os\nos.kill({os.getpid()}, 0)").passed


def test_no_socket_is_opened() -> None:
    needs("no sockets")
    assert not run("import socket\nsocket.socket()").passed


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    needs("read-only files")
    kept = tmp_path / "kept"
    kept.write_text("mine")
    for harm in (f"os.remove({str(kept)!r})", f"open({str(kept)!r}, 'w')", f"os.rename({str(kept)!r}, 'x')"):
        assert not run(f"import os\n{harm}").passed
    assert not run(f"open({str(tmp_path / 'new')!r}, 'w')").passed
    writable = "import ctypes\nassert ctypes.CDLL(None).mount(b'none', b'/', None, 32 | 4096, None) == 0"
    assert not run(writable).passed
    assert not run("import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0").passed
    assert kept.read_text() == "mine"
    assert sorted(tmp_path.iterdir()) == [kept]


@pytest.mark.skipif(not LINUX, reason="devices and pipes of Linux")
def test_devices_and_pipes_are_not_written(tmp_path: Path) -> None:
    """A read-only file system lets both through."""
    needs("no devices")
    ours, theirs = os.openpty()
    os.mkfifo(tmp_path / "pipe")
    reading = os.open(tmp_path / "pipe", os.O_RDWR)
    try:
        for path in (os.ttyname(theirs), str(tmp_path / "pipe"), "/dev/kmsg"):
            assert not run(f"open({path!r}, 'wb', buffering=0).write(b'x')").passed
    finally:
        for file in (ours, theirs, reading):
            os.close(file)
    assert run("open('/dev/null', 'wb').write(b'x')").passed


@pytest.mark.skipif(not LINUX, reason="signals of Linux")
def test_no_signal_is_ordered_from_the_kernel() -> None:
    needs("no processes")
    pid = os.getpid()
    for order in (f"fcntl(0, 8, {pid})", "fcntl(0, 10, 9)", "ioctl(0, 0x8901, b'1234')"):
        assert not run(f"import fcntl\nfcntl.{order}").passed
    assert run("import fcntl\nfcntl.fcntl(0, 3)").passed


def test_what_must_hold_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "missing", lambda: ("no devices", "no network"))
    sandbox.check(unconfined=False)
    monkeypatch.setattr(sandbox, "missing", lambda: ("no sockets",))
    sandbox.check(unconfined=True)
    with pytest.raises(InputError, match="no sockets is not to be had"):
        sandbox.check(unconfined=False)


def test_it_says_which_walls_stand() -> None:
    ran = run("")
    assert isinstance(ran, Ran)
    assert set(ran.holds) | set(missing()) == set(ALL)
    assert not set(ran.holds) & set(missing())


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = len(os.listdir("/proc/self/fd")) if LINUX else 0
    run("open('x', 'w').write('x')")
    run("while True: pass", Limits(seconds=0.5))
    assert list(tmp_path.iterdir()) == []
    if LINUX:
        assert len(os.listdir("/proc/self/fd")) == before
