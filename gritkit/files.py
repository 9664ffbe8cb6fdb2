"""Files that are whole or absent: atomic writes, staged folders, and the one path resolver.

A file is written beside its target, flushed to the disk and renamed; a folder likewise. A reader therefore never sees
half of either, and a kill leaves the old one or the new one.

This module knows nothing about what the files hold.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gritkit.errors import InputError


def resolve(path: str | os.PathLike[str]) -> Path:
    """An absolute path with ``~`` expanded; refuses the empty string and NUL, which ``Path`` would accept."""
    text = os.fspath(path)
    if not isinstance(text, str) or not text or "\0" in text:
        raise InputError(f"not a usable path: {text!r}")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:  # "~name" of nobody
        raise InputError(f"not a usable path: {text!r} ({error})") from None


def home() -> Path:
    """Where gritkit keeps what it worked out about models and machines: GRITKIT_HOME, else the user's cache folder.

    Everything in it can be worked out again.
    """
    given = os.environ.get("GRITKIT_HOME")
    if given:
        return resolve(given)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (resolve(cache) if cache else Path.home() / ".cache") / "gritkit"


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename in it survives a power cut; nothing where folders cannot be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass  # some network file systems refuse to sync a folder; the rename itself is still atomic
    finally:
        os.close(handle)


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader finds the old content or the new, never a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            # mkstemp makes private files; a replaced file keeps who may read it, a new one gets the usual
            Path(name).chmod(path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A folder to fill; on a clean exit it takes the place of ``target`` by renames, on an error it is removed.

    An existing target is moved aside first and deleted last, so at every moment a whole old or a whole new folder
    exists on the disk.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    old: Path | None = None
    stage = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
    stage.chmod(0o777 & ~_umask())  # mkdtemp and some writers make private files; a model is as shareable as any
    try:
        yield stage
        for file in stage.rglob("*"):
            if file.is_file():
                file.chmod(0o666 & ~_umask())
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
            elif file.is_dir():
                sync_folder(file)
        sync_folder(stage)
        if target.exists():
            old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".old"))
            os.replace(target, old / "folder")
            os.replace(stage, target)
        else:
            os.replace(stage, target)
    except BaseException:
        if old is not None and (old / "folder").exists() and not target.exists():
            os.replace(old / "folder", target)  # interrupted between the two renames
        shutil.rmtree(stage, ignore_errors=True)
        raise
    finally:
        if old is not None and target.exists():
            shutil.rmtree(old, ignore_errors=True)
    sync_folder(target.parent)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
