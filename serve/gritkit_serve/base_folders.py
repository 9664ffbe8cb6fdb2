"""The folders of knowledge bases: which names are free, how one is taken away at once, and what races have left of it.

A folder that goes is renamed first, so that a kill leaves all of it or none; the rest goes at the next start.
This module knows nothing about models or about who uses a base.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
from pathlib import Path

from gritkit.errors import StoreError
from gritkit.files import sync_folder
from gritkit.rag.manifest import FILE_NAME
from gritkit.rag.place import place_of

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_DELETED = ".deleted-"
_TABLE = re.compile(r"documents_\d+\.lance")
INSTRUCTION_FILE = ".gritkit_serve_instruction"
"""Beside a base's manifest: what its queries are embedded with. Hidden, so that a folder with it alone is empty."""
_HIDDEN = frozenset({".lock", INSTRUCTION_FILE})

_log = logging.getLogger("gritkit.serve")


def tidy(folder: Path, *, within: bool) -> None:
    """Make it; ``within``: it holds bases, so finish deletions that a kill interrupted, and clear remains of others.

    Raises StoreError for a folder that cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.iterdir()) if within else ():
            _tidy_one(path)
    except OSError as error:
        raise StoreError(f"cannot use the folder {folder}: {error.strerror or error}") from error


def _tidy_one(path: Path) -> None:
    if path.name.startswith(_DELETED):
        shutil.rmtree(path, ignore_errors=True)
    elif NAME.fullmatch(path.name):
        with contextlib.suppress(StoreError):  # another process is at it
            clear_remains(path)
    elif (path / FILE_NAME).is_file():
        _log.warning("%s is not served: its name must match %s", path, NAME.pattern)


def instruction_of(where: Path | str) -> str | None:
    """What a base's queries are embedded with; None where it was made without, and for a database."""
    if isinstance(where, str):
        return None
    try:
        return (where / INSTRUCTION_FILE).read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return None


def put_aside(path: Path) -> Path:
    """Take a folder out of the way at once; returns where it is, to be removed."""
    trash = path.with_name(f"{_DELETED}{path.name}-{secrets.token_hex(8)}")
    os.rename(path, trash)
    sync_folder(path.parent)
    return trash


def clear_remains(path: Path) -> None:
    """Remove what is left of a base, if that is all there is, and no other process has made one there meanwhile.

    Raises StoreError while another process writes there.
    """
    if not _is_remains(path):
        return
    with place_of(path).writing(alone=True, wait_s=0.0):
        trash = put_aside(path) if _is_remains(path) else None
    if trash is not None:
        shutil.rmtree(trash, ignore_errors=True)


def is_free(path: Path) -> bool:
    """Whether a base can be made there: nothing is, the hidden files of a killed attempt, or what is left of one."""
    try:
        return not path.is_symlink() and (all(name.startswith(".") for name in os.listdir(path)) or _is_remains(path))
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _is_remains(path: Path) -> bool:
    """Whether a folder holds what who opened a base makes anew once it is deleted, and nothing that anybody wrote:
    tables without rows, folders for key-values without any. What is being copied there, or is of others, stays."""
    try:
        if path.is_symlink():
            return False
        found = [one for one in path.iterdir() if one.name not in _HIDDEN]
        tables = [one for one in found if _TABLE.fullmatch(one.name)]
        rest = [one for one in found if one not in tables]
        rubbish = bool(tables) and all(map(_is_empty_table, tables)) and all(map(_is_empty_blocks, rest))
        return rubbish and not os.path.lexists(path / FILE_NAME)  # one that is being made has it first
    except OSError:
        return False


def _is_empty_table(path: Path) -> bool:
    if path.is_symlink() or not path.is_dir():
        return False
    rows = path / "data"
    return not rows.exists() or not any(rows.iterdir())


def _is_empty_blocks(path: Path) -> bool:
    if path.name != "blocks" or path.is_symlink() or not path.is_dir():
        return False
    return not any(names for _, _, names in os.walk(path))
