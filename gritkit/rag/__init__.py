"""Answers from documents that were read once: index, search, ask.

    documents -> GritModel.read (vector + DocKV, one forward) -> blocks on disk, then rows in the store
    question  -> search -> blocks -> laid one after the other -> decode; only the question's tokens are computed

``rag`` the class a user holds; ``documents`` what goes in and out; ``store`` the interface behind it and ``lance`` the
embedded one; ``manifest`` which model a folder belongs to. Nothing here knows about attention or HTTP.
"""

from gritkit.generation.params import Delta
from gritkit.rag.documents import AddReport, Answer, Document, Hit, RagEvent, Sources, Timings
from gritkit.rag.rag import Rag

__all__ = ["AddReport", "Answer", "Delta", "Document", "Hit", "Rag", "RagEvent", "Sources", "Timings"]
