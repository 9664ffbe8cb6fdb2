"""A query -> the chunks that suit it best: by vectors, by words, by both, and ordered again by the model.

This module knows nothing about databases, key-values or answers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gritkit.errors import InputError, StoreError, TooLongError
from gritkit.model import GritModel
from gritkit.rag.base import KnowledgeBase
from gritkit.rag.documents import Search, tags_to_find
from gritkit.rag.store import Row
from gritkit.search import reciprocal_rank_fusion
from gritkit.tokens import check_text

Scored = list[tuple[Row, float]]
"""Chunks and their scores, best first."""
_CANDIDATES = 4
"""Times ``top_k``: how many chunks each half of a hybrid search, and a rerank, looks at."""


class Searcher:
    """One model and one knowledge base.

    ``read_ahead`` is told of blocks that will probably be asked for, while the query is still being embedded.
    """

    def __init__(
        self,
        model: GritModel,
        base: KnowledgeBase,
        *,
        instruction: str | None,
        read_ahead: Callable[[Sequence[str]], None] | None,
    ) -> None:
        self._model = model
        self._base = base
        self._instruction = instruction
        self._read_ahead = read_ahead

    def ranked(self, query: str, top_k: int, where: Mapping[str, Any] | None, *, by: Search, rerank: bool) -> Scored:
        """At most ``top_k`` chunks among those whose metadata has all that ``where`` names.

        Raises:
            InputError: for an empty query, ``top_k`` below 1, or a filter that is none. StoreError: where the database
                fails, or the knowledge base was indexed with another model meanwhile.
        """
        if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1:
            raise InputError(f"top_k={top_k!r} must be a whole number of at least 1")
        if by not in ("dense", "text", "hybrid"):
            raise InputError(f"by={by!r} is not one of 'dense', 'text', 'hybrid'")
        tags = tags_to_find(where)
        if not isinstance(query, str) or not query.strip():
            raise InputError(f"the query is empty or no text: {query!r:.60}")
        search = {"dense": self._nearest, "text": self._matching, "hybrid": self._hybrid}[by]
        with current(self._base):
            found = search(query, top_k * _CANDIDATES if rerank else top_k, tags)
        if not rerank or not found:
            return found
        rows = [row for row, _ in found]
        ranked = self._model.rerank(query, [row.text for row in rows], top_n=top_k, truncate=True)
        return [(rows[one.index], one.score) for one in ranked]

    def _nearest(self, query: str, top_k: int, tags: Sequence[str]) -> Scored:
        limit = min(self._model.embedding_config.max_length, self._model.context_length)
        try:
            vector = self._model.embed(query, role="query", instruction=self._instruction, max_length=limit)
        except TooLongError:  # its advice is for texts that may be cut or split
            raise TooLongError(
                f"the query is longer than the {limit} tokens that the model reads: shorten it"
            ) from None
        return self._base.store.nearest(vector, top_k, tags)

    def _matching(self, query: str, top_k: int, tags: Sequence[str]) -> Scored:
        return self._base.store.matching(check_text(query, "query"), top_k, tags)

    def _hybrid(self, query: str, top_k: int, tags: Sequence[str]) -> Scored:
        """Both searches at once, fused by rank (Cormack et al. 2009)."""
        wanted = top_k * _CANDIDATES

        def by_words() -> Scored:
            found = self._matching(query, wanted, tags)
            if self._read_ahead is not None:
                self._read_ahead([row.block_key for row, _ in found[:top_k]])
            return found

        with ThreadPoolExecutor(1) as pool:
            words = pool.submit(by_words)
            dense = self._nearest(query, wanted, tags)
            both = [dense, words.result()]
        rows = {row.id: row for ranking in both for row, _ in ranking}
        fused = reciprocal_rank_fusion([[row.id for row, _ in ranking] for ranking in both])
        return [(rows[id], score) for id, score in fused[:top_k]]


@contextlib.contextmanager
def current(base: KnowledgeBase) -> Iterator[None]:
    """Where the store fails, say so first when it is because the knowledge base was indexed again meanwhile."""
    try:
        yield
    except StoreError:
        base.check_current()
        raise
