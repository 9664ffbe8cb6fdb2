"""A question whose passages are found -> the request that the decoder is to run: the way decided, key-values at hand.

What is missing or damaged is computed again from the stored text; the beginning of a prompt that was read is kept for
the next one.

This module knows nothing about search, or how an answer is decoded.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from gritkit.embedding import num_prompt
from gritkit.errors import InputError
from gritkit.generation.decoder import Request
from gritkit.kv.dockv import Join, ReadDocument
from gritkit.model import GritModel
from gritkit.rag import ladder
from gritkit.rag.answering import Prepared, Question, joined_tokens, num_left_out, paper_request, tokens_of
from gritkit.rag.base import KnowledgeBase
from gritkit.rag.cache import DocumentCache
from gritkit.rag.rates import Rates
from gritkit.rag.store import Row
from gritkit.rag.verdicts import Verdict
from gritkit.tokens import sequence


class Preparer:
    """One model and one knowledge base; without a cache every document is read in its prompt."""

    def __init__(
        self,
        model: GritModel,
        base: KnowledgeBase,
        cache: DocumentCache | None,
        *,
        rates: Rates,
        verdicts: Sequence[Verdict],
        instruction: str | None,
    ) -> None:
        self._model = model
        self._base = base
        self._cache = cache
        self._rates = rates
        self._verdicts = verdicts
        self._instruction = instruction

    def prepare(self, question: Question, reuse: str, join: Join, link_tokens: int | None) -> Prepared:
        """Raises InputError for a way that has no place for the conversation before the question."""
        rows = question.rows
        ids = joined_tokens(rows, num_left_out(self._model, join, rows))
        way = ladder.choose(
            reuse,
            self._facts(rows, ids),
            self._verdicts,
            codec=self._base.manifest.codec,
            join=join,
            link_tokens=link_tokens,
        )
        return self._prepared(question, way, ids, keep_prefix=reuse in ("auto", "prefix"))

    def _prepared(self, question: Question, way: ladder.Way, ids: list[int], *, keep_prefix: bool) -> Prepared:
        prompt, rows = self._model.tokens.question_prompt(question.text, question.earlier), question.rows
        if way.reuse in ("off", "prefix"):
            if not keep_prefix or self._cache is None:
                return Prepared(Request([*ids, *prompt], question.params), way)
            return self._from_prefix(question, way, ids, prompt)
        if way.reuse in ("query", "query_doc", "doc_query"):
            if question.earlier:
                raise InputError(f"reuse={way.reuse!r} has no place for a conversation before the question")
            _, (query,) = self._model.read([question.text], role="query", instruction=self._instruction)
            documents, recomputed = ([], 0) if way.reuse == "query" else self._load(rows)
            return Prepared(paper_request(self._model, question, query, documents, way), way, recomputed)
        documents, recomputed = self._load(rows)
        return Prepared(Request(prompt, question.params, documents, way.join, way.link_tokens), way, recomputed)

    def _from_prefix(self, question: Question, way: ladder.Way, ids: list[int], prompt: list[int]) -> Prepared:
        """From the kept beginning of the prompt; where there is none, it is read and kept for the next one."""
        assert self._cache is not None
        rows = question.rows
        if self._exact_alone(rows):
            documents, recomputed = self._load(rows)
            return Prepared(Request(prompt, question.params, documents), way, recomputed)
        kept = self._cache.prefix(ids)
        if kept is not None:
            return Prepared(Request(prompt, question.params, [kept]), way)
        since = time.perf_counter()
        text = [place >= len(self._model.tokens.bos_ids) for place in range(len(ids))]
        _, (read,) = self._model.read_tokens([sequence(ids, pool=text)], causal=True)
        self._rates.measured("prefill", len(ids), time.perf_counter() - since)
        self._cache.keep_prefix(read)
        reason = "its beginning was not read before" if way.reuse == "prefix" else way.reason
        request = Request(prompt, question.params, [read], num_computed=len(ids))
        return Prepared(request, ladder.Way("off", reason, way.join))

    def _facts(self, rows: Sequence[Row], ids: Sequence[int]) -> ladder.Facts:
        if self._cache is None:
            return ladder.Facts(False, False, False, None, None)
        return ladder.Facts(
            movable=True,
            exact_alone=self._exact_alone(rows),
            has_prefix=self._cache.has_prefix(ids),
            load_s=self._cache.seconds_to_load(row.block_key for row in rows),
            prefill_s=self._rates.seconds("prefill", len(ids)),
        )

    def _exact_alone(self, rows: Sequence[Row]) -> bool:
        causal = self._model.embedding_config.embedding_attention == "causal"
        return causal and len(rows) == 1 and self._base.manifest.codec == "exact"

    def _load(self, rows: Sequence[Row]) -> tuple[list[ReadDocument], int]:
        """The key-values of rows in their order, and how many of them had to be computed again."""
        assert self._cache is not None
        recomputed = 0
        documents: list[ReadDocument] = []
        for row, document in zip(rows, self._cache.get_many([row.block_key for row in rows]), strict=True):
            if document is None:
                tokens = tokens_of(self._model, row)
                own = self._cache.coder.key(tokens.ids.tolist(), len(self._model.tokens.bos_ids), num_prompt(tokens))
                if own != row.block_key:  # another tenant added it
                    (document,) = self._cache.get_many([own])
            if document is None:
                _, (read,) = self._model.read_tokens([tokens])
                document = self._cache.keep(read)
                recomputed += 1
            documents.append(document)
        return documents, recomputed
