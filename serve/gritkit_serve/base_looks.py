"""What there is to say about a knowledge base that nobody needs to read or answer with.

This module knows nothing about names, folders of several bases, or which of them are open.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gritkit.kv.codecs import DEFAULT_CODEC
from gritkit.rag.base import KnowledgeBase, Stats
from gritkit.rag.place import place_of
from gritkit.rag.reader import manifest_of

if TYPE_CHECKING:
    from gritkit.model import GritModel


@dataclass(frozen=True)
class Facts:
    """What there is to say about a base."""

    name: str
    stats: Stats | None
    """None where it cannot be opened at all."""
    instruction: str | None
    problem: str | None
    """Why it cannot be used now."""


def open_to_look(where: Path | str, model: GritModel, instruction: str | None) -> KnowledgeBase:
    """What :meth:`gritkit.rag.Rag.open` opens, without what reads documents and keeps key-values in memory.

    Raises:
        InputError, StoreError: where that does, since the base is of no use with this model.
    """
    model.tokens.format.embed_prefix("query", instruction)
    stored = place_of(where).read()
    codec = DEFAULT_CODEC if stored is None else stored.codec
    return KnowledgeBase.open(where, manifest=manifest_of(model, codec=codec))
