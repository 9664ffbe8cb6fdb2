"""Answers from documents that were read once: index, search, ask.

    documents -> GritModel.read (vector + DocKV, one forward) -> blocks on disk, then rows in the store
    question  -> search -> blocks -> laid one after the other -> decode; only the question's tokens are computed

``rag`` is the class a user holds. Without a model, and without torch: ``base`` what changes together and is kept sound,
``store`` the interface to a database, ``lance`` and ``postgres`` behind it, ``sources`` and ``chunking`` from files to
chunks. Names are loaded on first use, so that those can be imported alone. Nothing here knows about attention or HTTP.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gritkit.generation.params import Delta
    from gritkit.rag.adding import AddStopped, reindex
    from gritkit.rag.documents import AddReport, Answer, Document, Hit, RagEvent, Sources, Timings
    from gritkit.rag.rag import Budget, Rag

_PLACES = {
    "Delta": "gritkit.generation.params",
    **dict.fromkeys(("AddStopped", "reindex"), "gritkit.rag.adding"),
    "Budget": "gritkit.rag.rag",
    "Rag": "gritkit.rag.rag",
    **dict.fromkeys(
        ("AddReport", "Answer", "Document", "Hit", "RagEvent", "Sources", "Timings"), "gritkit.rag.documents"
    ),
}

__all__ = [
    "AddReport",
    "AddStopped",
    "Answer",
    "Budget",
    "Delta",
    "Document",
    "Hit",
    "Rag",
    "RagEvent",
    "Sources",
    "Timings",
    "reindex",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
