"""What a knowledge base says about itself: its format, the model that read it, how its documents were cut.

It is written before anything else and afterwards only changes as a whole, so a place either says what it is or is not a
knowledge base. What it says must agree with the model that opens it; how documents are cut counts when it is made.

This module knows nothing about where manifests are kept (:mod:`gritkit.rag.place`), documents or stores.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from gritkit.errors import StoreError

FORMAT_VERSION = 2
FILE_NAME = "gritkit_kb.json"
"""Of the manifest in a local folder."""
_AGREE = {"fingerprint": "model", "dim": "vector length", "prompt_format": "prompt format", "codec": "codec"}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that must be known to read a knowledge base."""

    fingerprint: str
    """Of the model that reads the documents."""
    dim: int
    prompt_format: str
    codec: str = "int8"
    """Of the key-values."""
    chunk_tokens: int = 512
    """Longest chunk; counts when the knowledge base is made."""
    chunk_overlap: int = 0
    """Tokens that neighbouring chunks share at most; counts when the knowledge base is made."""
    generation: int = 0
    """Which of the store's tables is in use; another model's vectors go to the next one."""

    def to_json(self) -> str:
        return json.dumps({"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> Manifest:
        """Raises StoreError for another format version, and for what is no manifest."""
        try:
            found = json.loads(text)
            version = found["format_version"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise _damaged(where) from None
        if version != FORMAT_VERSION:
            raise StoreError(
                f"{where} has knowledge-base format {version!r:.20} and this gritkit reads {FORMAT_VERSION}: "
                "index the documents again into a new place, or use the gritkit that made it"
            )
        fields = {field.name: found.get(field.name) for field in dataclasses.fields(cls)}
        if not _plausible(fields):
            raise _damaged(where)
        return cls(**fields)

    def check_agrees(self, stored: Manifest, where: str) -> None:
        """Raises StoreError when ``stored``, of the knowledge base ``where``, was made under other conditions."""
        for name, what in _AGREE.items():
            theirs, mine = getattr(stored, name), getattr(self, name)
            if theirs != mine:
                raise StoreError(
                    f"{where} was indexed with another {what} ({theirs!s:.12}, this one is {mine!s:.12}): open it "
                    f"with what it was made with, or convert it with: gritkit kb reindex {where}"
                )


def _plausible(fields: dict[str, Any]) -> bool:
    texts = all(isinstance(fields[name], str) for name in ("fingerprint", "prompt_format", "codec"))
    least = {"dim": 1, "chunk_tokens": 1, "chunk_overlap": 0, "generation": 0}
    return texts and all(type(fields[name]) is int and least[name] <= fields[name] < 1 << 31 for name in least)


def _damaged(where: str) -> StoreError:
    return StoreError(f"the manifest of {where} is damaged: restore it, or index the documents again into a new place")
