"""Paths -> texts with ids, one after the other, and what could not be read. Nothing is changed.

A folder is walked sorted; hidden entries, links and special files are left out, and archives are not opened. Every step
down is taken from the folder that is open, without following links, so nothing outside of the given folder is read,
even if somebody changes it meanwhile. A file that is named is read whatever its suffix. One file at a time is in
memory, of files of rows one row. Ids are paths as they were given, so a folder that is indexed again from the same
place updates its documents.

This module knows nothing about models or knowledge bases.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from gritkit.errors import GritkitError, InputError
from gritkit.files import resolve
from gritkit.rag.parsers import PARSERS, parse
from gritkit.rag.rows import BadRow, read_rows

MAX_FILE_BYTES = 64_000_000
MAX_DEPTH = 100
"""Folders in folders; one is open for each."""

_LANGUAGES = {
    "shell": "bash fish sh zsh", "c": "c h", "cpp": "cc cpp cu hh hpp", "config": "cfg ini nix proto toml yaml yml",
    "clojure": "clj", "csharp": "cs", "css": "css", "dart": "dart", "lisp": "el lisp", "elixir": "ex exs", "go": "go",
    "haskell": "hs", "java": "java", "julia": "jl", "javascript": "js jsx", "kotlin": "kt", "lua": "lua", "matlab": "m",
    "ocaml": "ml", "php": "php", "perl": "pl", "python": "py pyi", "r": "r", "ruby": "rb", "rust": "rs",
    "scala": "scala", "sql": "sql", "swift": "swift", "typescript": "ts tsx", "vim": "vim", "zig": "zig",
}  # fmt: skip
KINDS = {
    **{f".{suffix}": f"code:{language}" for language, suffixes in _LANGUAGES.items() for suffix in suffixes.split()},
    **dict.fromkeys((".txt", ".rst", ".adoc", ".org", ".tex"), "text"),
    **dict.fromkeys((".md", ".markdown"), "markdown"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    ".pdf": "pdf",
    ".docx": "docx",
    **dict.fromkeys((".jsonl", ".ndjson", ".csv", ".tsv"), "rows"),
}
"""What is read of a folder, by suffix in lower case."""
_ARCHIVES = frozenset({
    ".7z", ".bz2", ".epub", ".gz", ".jar", ".odt", ".pptx", ".rar", ".tar", ".tgz", ".whl", ".xlsx", ".xz", ".zip",
    ".zst",
})  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A text to index."""

    id: str
    text: str
    kind: str
    """What structure it has: "text", "markdown", "html", "docx", "pdf", or "code:python" and the like."""
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """A file, or a row of one, that could not be read; both are one printable line."""

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


def read_paths(
    paths: Sequence[str],
    *,
    jsonl_field: str = "text",
    max_file_bytes: int = MAX_FILE_BYTES,
    on_empty: Callable[[str], None] | None = None,
) -> Iterator[Source | Failure]:
    """Read all of the paths while the result is consumed; each file once, even when two paths lead to it.

    ``jsonl_field`` is the field or column that holds the text of a row. A file of more than ``max_file_bytes`` is a
    failure; of files of rows it limits a row. ``on_empty`` hears of the files of folders that hold nothing but space
    (``__init__.py`` and the like), which are no failures.
    """
    reader = _Reader(jsonl_field, max_file_bytes, on_empty)
    earlier: list[tuple[str, bool]] = []
    for given in paths:
        name = PurePosixPath(os.path.normpath(given)).as_posix() if given else given
        try:
            path = os.path.realpath(resolve(given))
            is_folder = os.path.isdir(path)
            if not is_folder and not os.path.exists(path):
                raise InputError("no such file or folder")
            if is_folder:
                yield from reader.folder(path, name, earlier)
            elif not _read_before(path, earlier):
                with _opened(path) as file:
                    yield from reader.file(file, name, named=True)
            earlier.append((path, is_folder))
        except (OSError, InputError) as error:
            yield _failure(name, error)


def read_file(
    file: BinaryIO, name: str, *, jsonl_field: str = "text", max_file_bytes: int = MAX_FILE_BYTES
) -> Iterator[Source | Failure]:
    """Read an open file as one that :func:`read_paths` was given; its name says what it is, and is never opened."""
    try:
        yield from _Reader(jsonl_field, max_file_bytes, None).file(file, name, named=True)
    except (OSError, InputError) as error:
        yield _failure(name, error)


class _Reader:
    """Reads files under one set of options."""

    def __init__(self, text_field: str, max_bytes: int, on_empty: Callable[[str], None] | None) -> None:
        self._text_field = text_field
        self._max_bytes = max_bytes
        self._on_empty = on_empty

    def folder(self, path: str, name: str, earlier: Sequence[tuple[str, bool]]) -> Iterator[Source | Failure]:
        """Everything below a folder that :data:`KINDS` names."""
        found = False
        for parent, parts in _walk(path):
            found = True
            shown = PurePosixPath(name, *parts).as_posix()
            if isinstance(parent, Exception):
                yield _failure(shown, parent)
            elif not _read_before(os.path.join(path, *parts), earlier):
                try:
                    with _opened(parts[-1], parent) as file:
                        yield from self.file(file, shown, named=False)
                except (OSError, InputError) as error:
                    yield _failure(shown, error)
        if not found:
            yield _failure(name, InputError("no file that can be read is in this folder"))

    def file(self, file: BinaryIO, name: str, *, named: bool) -> Iterator[Source | Failure]:
        """What an open file holds. Raises OSError or InputError for one that cannot be read."""
        if _surrogates(name):
            raise InputError("its name is not UTF-8: rename it")
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in _ARCHIVES:
            raise InputError(f"is an archive or a file of a sort ({suffix}) that is not read: unpack or convert it")
        kind = KINDS.get(suffix, "text")
        if kind == "rows":
            yield from self._rows(file, name, suffix, named)
            return
        size = os.fstat(file.fileno()).st_size
        data = file.read(self._max_bytes + 1) if size <= self._max_bytes else b""
        if max(size, len(data)) > self._max_bytes:
            raise InputError(
                f"is {max(size, len(data)) / 1e6:.1f} MB long and may have {self._max_bytes / 1e6:g} MB: "
                "split it, or raise max_file_bytes"
            )
        try:
            parsed = parse(data, kind, self._max_bytes)
        except GritkitError as error:
            raise InputError(str(error)) from None
        except Exception as error:  # what a library makes of a damaged file
            what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise InputError(f"cannot be read as {kind.upper()}, is it damaged? ({what:.200})") from None
        if not parsed.text.strip():
            self._empty(name, named, "is empty" if kind not in PARSERS else "holds no text")
        elif _surrogates(parsed.text):
            raise InputError("has halves of characters in its text (lone surrogates): it is damaged")
        else:
            about = {key: value for key, value in parsed.metadata.items() if not _surrogates(value)}
            yield Source(name, parsed.text, kind, {"path": name, **about})

    def _rows(self, file: BinaryIO, name: str, suffix: str, named: bool) -> Iterator[Source | Failure]:
        nothing = True
        for row in read_rows(file, suffix, self._text_field, self._max_bytes):
            nothing = False
            where = f"{name}:{row.line}"
            if isinstance(row, BadRow):
                yield _failure(where, InputError(row.reason))
            elif _surrogates(row.text, row.id, *row.metadata, *row.metadata.values()):
                yield _failure(where, InputError("has halves of characters (lone surrogates): encode it anew"))
            else:
                yield Source(row.id or where, row.text, "text", {"path": name, **row.metadata})
        if nothing:
            self._empty(name, named, "has no rows")

    def _empty(self, name: str, named: bool, reason: str) -> None:
        if named:
            raise InputError(reason)
        if self._on_empty:
            self._on_empty(name)


def _walk(path: str) -> Iterator[tuple[int | Exception, tuple[str, ...]]]:
    """(descriptor of the folder that is open, parts of the path below the first) of every file, sorted.

    In place of a descriptor, what is wrong with a folder.
    """
    stack: list[tuple[int, tuple[str, ...], list[tuple[str, bool]]]] = []
    try:
        root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.append((root, (), []))
        stack[0][2].extend(_entries(root))
        while stack:
            folder, above, entries = stack[-1]
            if not entries:
                os.close(stack.pop()[0])
                continue
            name, is_folder = entries.pop()
            parts = (*above, name)
            if not is_folder:
                yield folder, parts
            elif len(stack) == MAX_DEPTH:
                yield InputError(f"folders are more than {MAX_DEPTH} deep here: index it from further down"), parts
            else:
                try:
                    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                    stack.append((os.open(name, flags, dir_fd=folder), parts, []))
                    stack[-1][2].extend(_entries(stack[-1][0]))
                except OSError as error:
                    yield error, parts
    finally:
        for folder, _, _ in stack:
            os.close(folder)


def _entries(folder: int) -> list[tuple[str, bool]]:
    """(name, whether it is a folder) of what is read, the first one last."""
    with os.scandir(folder) as entries:
        found = []
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if not entry.name.startswith("."):
                    found.append((entry.name, True))
            elif _is_read(entry.name) and entry.is_file(follow_symlinks=False):
                found.append((entry.name, False))
    return sorted(found, reverse=True)


def _is_read(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in KINDS


def _read_before(path: str, earlier: Sequence[tuple[str, bool]]) -> bool:
    """Whether an earlier path was this file, or a folder whose walk came by it."""
    for root, is_folder in earlier:
        below = path[len(root.rstrip("/")) + 1 :] if is_folder and path.startswith(root.rstrip("/") + "/") else ""
        *folders, name = below.split("/")
        if path == root or (_is_read(name) and not any(part.startswith(".") for part in folders)):
            return True
    return False


def _opened(name: str, folder: int | None = None) -> BinaryIO:
    """An ordinary file, opened without waiting for what may be a pipe; no link when it stands in a folder."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_NOFOLLOW if folder is not None else 0)
    handle = os.open(name, flags, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise InputError("is no ordinary file (a pipe, a device ...)")
    return os.fdopen(handle, "rb")


def _surrogates(*values: Any) -> bool:
    """Whether a text among these cannot be encoded."""
    try:
        for value in values:
            if isinstance(value, str):
                value.encode()
    except UnicodeEncodeError:
        return True
    return False


def _failure(where: str, error: Exception) -> Failure:
    reason = getattr(error, "strerror", None) or str(error)
    return Failure(_printable(where), _printable(" ".join(reason.split())))


def _printable(text: str) -> str:
    """Control characters and bytes that are no text, escaped: a failure is one line and harmless on a terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
