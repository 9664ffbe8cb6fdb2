"""The inside of the sandbox: closes the doors behind itself, then runs the program that it reads.

Run by :mod:`gritkit_eval.generation.sandbox` as ``python -I -S -B sandbox_jail.py FD SETTING``, in two lives: the
first builds the walls and starts anew, which takes the powers away that it needed; the second limits itself, writes to
FD which walls stand, and runs the program. It imports nothing but the standard library.

On Linux: namespaces of users, mounts, network and IPC (``unshare``), the whole file system read-only
(``mount_setattr``) but for a small one in memory for the program's folder, ``/proc`` hidden (it shows other processes'
environments); a seccomp filter that refuses to start processes or threads, to signal or trace, to open sockets, and
to build namespaces; and Landlock, by which nothing outside the folder is opened for writing, devices and pipes that a
read-only file system lets through included. Filter and Landlock need no namespaces, which containers often refuse.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import struct
import sys
from types import ModuleType

_NEWNS, _NEWIPC, _NEWUSER, _NEWNET = 0x00020000, 0x08000000, 0x10000000, 0x40000000
_RECURSIVE, _PRIVATE, _READ_ONLY = 0x8000, 1 << 18, 1
_NOSUID_NODEV = 2 | 4
_NO_NEW_PRIVS, _SECCOMP, _FILTER, _DEATH_SIGNAL = 38, 22, 2, 1
_MOUNT_SETATTR = 442
_PROCESS_CALLS = {
    "x86_64": (56, 57, 58, 435, 62, 200, 234, 129, 297, 424, 101, 310, 311, 272, 308, 425),
    "aarch64": (220, 435, 129, 130, 131, 138, 240, 424, 117, 270, 271, 97, 268, 425),
}
"""clone, fork, vfork, clone3, kill, tkill, tgkill, rt_sigqueueinfo, rt_tgsigqueueinfo, pidfd_send_signal, ptrace,
process_vm_readv and writev, unshare, setns, io_uring_setup: by the kernel's tables (aarch64 has no fork, no vfork)."""
_SOCKET_CALLS = {"x86_64": (41, 53), "aarch64": (198, 199)}
"""socket, socketpair."""
_SIGNAL_COMMANDS = {
    "x86_64": ((72, (8, 10, 15)), (16, (0x8901, 0x8902))),
    "aarch64": ((25, (8, 10, 15)), (29, (0x8901, 0x8902))),
}
"""fcntl with F_SETOWN, F_SETSIG, F_SETOWN_EX and ioctl with FIOSETOWN, SIOCSPGRP: the kernel then signals for one."""
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_WRITE, _DEVICE_CONTROL, _SCOPE_SIGNALS = 1 << 1, 1 << 15, 1 << 1
_WRITES = _WRITE | sum(1 << bit for bit in range(4, 15))
"""Writing, removing, making of every kind, linking elsewhere, cutting."""
_WRITES_TO_FILES = _WRITE | sum(1 << bit for bit in (4, 5, 7, 8, 13, 14))
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000
"""Calls of x86_64's other tables begin here; all of them are refused."""


def main() -> None:
    file, setting = int(sys.argv[1]), json.loads(sys.argv[2])
    if len(sys.argv) == 3:
        walls = _walls(setting) if sys.platform == "linux" else []
        again = [sys.executable, "-I", "-S", "-B", __file__, *sys.argv[1:], json.dumps(walls)]
        os.set_inheritable(file, True)
        os.execve(sys.executable, again, {})
    walls = json.loads(sys.argv[3])
    given = json.loads(sys.stdin.buffer.read())
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.close(nowhere)
    del sys.argv[1:]
    _limit(setting)
    if sys.platform == "linux" and _landlock(setting["folder"]):
        walls = ["read-only files", "no devices", *walls]
    if sys.platform == "linux" and _filter():
        walls = ["no processes", "no sockets", *walls]
    elif os.getuid() and _lower(resource.RLIMIT_NPROC, 0):
        walls = ["no processes", *walls]
    os.write(file, (", ".join(walls) + "\n").encode())
    module = ModuleType("program")  # dataclasses look their module up
    sys.modules["program"] = module
    try:
        exec(compile(given["program"], "program", "exec"), module.__dict__)
    except BaseException:  # an exit is no pass either
        os._exit(1)
    os.write(file, (given["word"] + "\n").encode())
    os._exit(0)


def _walls(setting: dict[str, str]) -> list[str]:
    """Namespaces, and in them a file system that cannot be written; those that this machine permits."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_DEATH_SIGNAL, 9, 0, 0, 0)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_NEWUSER | _NEWNS | _NEWNET | _NEWIPC):
        return []
    try:
        # Not root inside either: starting anew as somebody else leaves all powers over the namespaces behind.
        for name, value in (("setgroups", "deny"), ("uid_map", f"1000 {user} 1"), ("gid_map", f"1000 {group} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(value)
    except OSError:
        return ["no network"]
    return ["read-only files", "no network"] if _read_only(libc, setting) else ["no network"]


def _read_only(libc: ctypes.CDLL, setting: dict[str, str]) -> bool:
    folder = setting["folder"].encode()
    read_only = struct.pack("=QQQQ", _READ_ONLY, 0, 0, 0)
    size = f"size={setting['disk']},mode=700".encode()
    done: bool = (
        libc.mount(b"none", b"/", None, _RECURSIVE | _PRIVATE, None) == 0
        and libc.syscall(_MOUNT_SETATTR, -100, b"/", _RECURSIVE, read_only, len(read_only)) == 0
        and libc.mount(b"none", b"/proc", b"tmpfs", _NOSUID_NODEV | _READ_ONLY, b"size=0") == 0
        and libc.mount(b"none", folder, b"tmpfs", _NOSUID_NODEV, size) == 0
    )
    if done:
        os.chdir(setting["folder"])
    return done


def _limit(setting: dict[str, float]) -> None:
    seconds = int(setting["seconds"]) + 1
    _lower(resource.RLIMIT_CPU, seconds)
    _lower(resource.RLIMIT_AS, int(setting["memory"]))
    _lower(resource.RLIMIT_FSIZE, int(setting["disk"]))
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NOFILE, 64)


def _lower(what: int, value: int) -> bool:
    """Soft and hard; a limit that is lower already, or that this system does not know, stays."""
    try:
        hard = resource.getrlimit(what)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (value, value))
    except (OSError, ValueError):
        return False
    return True


def _landlock(folder: str) -> bool:
    """Nothing but the folder's files, and nowhere's, may be written from now on; False where the kernel is too old."""
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if version < 3 or libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0):  # the first two let files be cut
        return False
    handled = _WRITES | (_DEVICE_CONTROL if version >= 5 else 0)
    attributes = struct.pack("=QQQ", handled, 0, _SCOPE_SIGNALS if version >= 6 else 0)
    rules = libc.syscall(_LANDLOCK_CREATE, attributes, len(attributes) if version >= 6 else 8, 0)
    if rules < 0:
        return False
    for path, allowed in ((folder, _WRITES_TO_FILES), (os.devnull, _WRITE)):
        place = os.open(path, os.O_PATH)
        libc.syscall(_LANDLOCK_ADD, rules, 1, struct.pack("=Qi", allowed, place), 0)
        os.close(place)
    done = libc.syscall(_LANDLOCK_RESTRICT, rules, 0) == 0
    os.close(rules)
    return bool(done)


def _filter() -> bool:
    """Refuse the calls of the tables above from now on, for good. False where the machine's table is not known."""
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        return False
    refused = _PROCESS_CALLS[machine] + _SOCKET_CALLS[machine]
    load, equal, at_least, back = 0x20, 0x15, 0x35, 0x06
    kill, refuse, allow = 0x80000000, 0x00050000 | 1, 0x7FFF0000
    number, architecture, second = 0, 4, 24  # where the call's number, its table and its second argument stand
    code = [(load, 0, 0, architecture), (equal, 1, 0, _ARCHITECTURES[machine]), (back, 0, 0, kill)]
    code += [(load, 0, 0, number)]
    if machine == "x86_64":
        code += [(at_least, 0, 1, _X32), (back, 0, 0, refuse)]
    for call in refused:
        code += [(equal, 0, 1, call), (back, 0, 0, refuse)]
    for call, commands in _SIGNAL_COMMANDS[machine]:
        code += [(equal, 0, 1 + 2 * len(commands) + 1, call), (load, 0, 0, second)]
        for command in commands:
            code += [(equal, 0, 1, command), (back, 0, 0, refuse)]
        code += [(back, 0, 0, allow)]
    code += [(back, 0, 0, allow)]
    packed = b"".join(struct.pack("=HBBI", *one) for one in code)
    buffer = ctypes.create_string_buffer(packed)
    program = struct.pack("@HP", len(code), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False
    return bool(libc.prctl(_SECCOMP, _FILTER, ctypes.c_char_p(program), 0, 0) == 0)


if __name__ == "__main__":
    main()
