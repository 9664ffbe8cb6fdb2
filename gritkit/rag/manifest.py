"""The one file that says what a knowledge base is: its format, the model that read it, the size of its vectors.

It is written first and never changed, so a folder either says what it is or is not a knowledge base.

This module knows nothing about documents or stores.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from gritkit.errors import StoreError
from gritkit.files import write_atomic

FORMAT_VERSION = 1
FILE_NAME = "gritkit_kb.json"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What must agree between a knowledge base and the model that opens it."""

    fingerprint: str
    dim: int
    prompt_format: str

    def open(self, folder: Path) -> None:
        """Check the folder's manifest against this one, or make the folder and write it.

        Raises:
            StoreError: for another model, another format version, a broken manifest, or a folder of something else.
        """
        path = folder / FILE_NAME
        try:
            if path.exists():
                self._check(path)
                return
            if folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
                raise StoreError(f"{folder} is not empty and holds no knowledge base: name a new or an empty folder")
            fields = {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
            write_atomic(path, (json.dumps(fields, indent=2) + "\n").encode())
        except OSError as error:
            raise StoreError(f"cannot open the knowledge base {folder}: {error.strerror or error}") from error

    def _check(self, path: Path) -> None:
        folder = path.parent
        try:
            found = json.loads(path.read_bytes())
            version = found["format_version"]
        except (ValueError, KeyError, TypeError):
            raise StoreError(f"{path} is damaged: restore it, or index the documents again into a new folder") from None
        if version != FORMAT_VERSION:
            raise StoreError(
                f"{folder} has knowledge-base format {version!r} and this gritkit reads {FORMAT_VERSION}: "
                "index the documents again into a new folder, or use the gritkit that made it"
            )
        for name, mine in dataclasses.asdict(self).items():
            if found.get(name) != mine:
                theirs, here = (str(value)[:12] for value in (found.get(name), mine))
                raise StoreError(
                    f"{folder} was indexed with another model ({name} {theirs}, this one has {here}): "
                    "open it with that model and its settings, or index the documents again into a new folder"
                )
