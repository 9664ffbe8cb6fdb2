"""Files and folders -> texts with ids, and a list of what could not be read. Nothing is changed.

A folder is walked sorted, hidden entries and links left out, and gives its text files by suffix; a file that is named
gives its text whatever its suffix. A JSONL row is a text of its own. Ids are paths as they were given, so a folder that
is indexed again from the same place updates its documents.

This module knows nothing about models or knowledge bases.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gritkit.cli.input import decode, json_row
from gritkit.errors import InputError
from gritkit.files import resolve

PROSE = {".txt", ".md", ".markdown", ".rst", ".adoc", ".org", ".tex"}
CODE = {
    ".bash", ".c", ".cc", ".cfg", ".clj", ".cpp", ".cs", ".css", ".cu", ".dart", ".el", ".ex", ".exs", ".fish", ".go",
    ".h", ".hh", ".hpp", ".hs", ".html", ".ini", ".java", ".jl", ".js", ".jsx", ".kt", ".lisp", ".lua", ".m", ".ml",
    ".nix", ".php", ".pl", ".proto", ".py", ".pyi", ".r", ".rb", ".rs", ".scala", ".sh", ".sql", ".swift", ".toml",
    ".ts", ".tsx", ".vim", ".yaml", ".yml", ".zig", ".zsh",
}  # fmt: skip
ROWS = {".jsonl", ".ndjson"}
SUFFIXES = PROSE | CODE | ROWS


@dataclass(frozen=True)
class Found:
    """A text to index."""

    id: str
    text: str
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class Collection:
    """What the paths held."""

    texts: list[Found] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """One line each, beginning with the file."""
    num_empty: int = 0
    """Files of folders that hold nothing but space (``__init__.py`` and the like)."""


def collect(paths: Sequence[str], jsonl_field: str = "text") -> Collection:
    """Read all of the paths; each file once, even when two paths lead to it."""
    found = Collection()
    seen: set[Path] = set()
    for given in paths:
        try:
            path = resolve(given)
            if path.is_dir():
                files = [(file, True) for file in _walk(path)]
                if not files:
                    found.failures.append(f"{given}: no text file in this folder")
            elif path.is_file():
                files = [(path, False)]
            else:
                raise InputError("no such file or folder")
        except (OSError, InputError) as error:
            found.failures.append(f"{given}: {getattr(error, 'strerror', None) or error}")
            continue
        for file, walked in files:
            if file not in seen:
                seen.add(file)
                name = (
                    Path(os.path.normpath(given), file.relative_to(path)) if walked else Path(os.path.normpath(given))
                )
                _read(file, name.as_posix(), walked, jsonl_field, found)
    return found


def _walk(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or entry.is_symlink():
            continue
        if entry.is_dir():
            yield from _walk(entry)
        elif entry.is_file() and entry.suffix.lower() in SUFFIXES:
            yield entry


def _read(file: Path, name: str, walked: bool, jsonl_field: str, found: Collection) -> None:
    try:
        text = decode(file.read_bytes(), name)
    except OSError as error:
        found.failures.append(f"{name}: {error.strerror}")
        return
    except InputError as error:
        found.failures.append(f"{name}: {str(error).removeprefix(name).strip()}")
        return
    if not text.strip():
        if walked:
            found.num_empty += 1
        else:
            found.failures.append(f"{name}: is empty")
    elif file.suffix.lower() in ROWS:
        _read_rows(text, name, jsonl_field, found)
    else:
        found.texts.append(Found(name, text, {"path": name}))


def _read_rows(text: str, name: str, jsonl_field: str, found: Collection) -> None:
    """A row's id is its ``id`` field, else file and line; its other plain fields are metadata."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            row = json_row(line, jsonl_field, where)
        except InputError as error:
            found.failures.append(f"{where}: {str(error).removeprefix(where).strip()}")
            continue
        content = row.pop(jsonl_field)
        if not content.strip():
            found.failures.append(f"{where}: the field {jsonl_field!r} is empty")
            continue
        own = row.pop("id", None)
        extra = {key: value for key, value in row.items() if isinstance(value, (str, int, float, bool))}
        found.texts.append(Found(where if own in (None, "") else str(own), content, {"path": name, **extra}))
