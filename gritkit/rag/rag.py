"""Rag: a knowledge base of documents that are read once, and the answers that start from them.

A document goes through the model once, when it is added: its chunks' vectors and rows go to the store, their key-values
to the blocks beside it. An answer lays the key-values of the chunks it found one after the other and computes the
question alone, or takes another rung of the ladder (``ladder``). A block that is missing or damaged later is computed
again from the stored text and written back.

    add     documents -> reader (cut, read) -> blocks, then rows (``base``)
    ask     question -> search -> ladder -> cache -> answering

This module composes; it knows nothing about attention, file formats or databases.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gritkit.errors import InputError, UnsupportedModelError
from gritkit.generation.params import SamplingParams
from gritkit.kv.blocks import Block, BlockStore
from gritkit.kv.codecs import DEFAULT_CODEC, check_codec
from gritkit.kv.dockv import Join, check_join
from gritkit.model import GritModel
from gritkit.prompts import Message
from gritkit.rag import ladder, verdicts
from gritkit.rag.adding import Adder, OnError, add_documents
from gritkit.rag.answering import (
    Clock,
    Found,
    Prepared,
    Question,
    answer_events,
    fitting,
    num_left_out,
    tokens_of,
)
from gritkit.rag.base import KnowledgeBase, Stats, VerifyReport
from gritkit.rag.cache import DocumentCache
from gritkit.rag.coding import BlockCoder
from gritkit.rag.documents import AddReport, Answer, Document, DocumentInfo, Hit, RagEvent, Search
from gritkit.rag.place import place_of
from gritkit.rag.preparing import Preparer
from gritkit.rag.rates import Rates
from gritkit.rag.reader import Reader, manifest_of, own_metadata
from gritkit.rag.searching import Searcher, current
from gritkit.rag.store import Row
from gritkit.tokens import check_text

MEMORY_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Bytes that key-values may take in each tier."""

    disk: int | None = None
    """None: half of what is free when the knowledge base is opened, and what its blocks take already."""
    memory: int = MEMORY_BYTES
    """Coded, as on disk; a quarter more for beginnings of prompts."""
    device: int = 0
    """Decoded, where the model is."""

    def __post_init__(self) -> None:
        for name, size in dataclasses.asdict(self).items():
            if size is not None and (not isinstance(size, int) or size < 0):
                raise InputError(f"a budget of {name}={size!r} is no number of bytes: give 0 or more")


class Rag:
    """A knowledge base and the model that reads it; made by :meth:`open`, best in a ``with`` block."""

    def __init__(
        self, model: GritModel, base: KnowledgeBase, *, instruction: str | None, salt: str, budget: Budget
    ) -> None:
        self.model = model
        self.base = base
        self.answers: Counter[str] = Counter()
        """How many answers took each way of reuse."""
        self._rates = Rates(base.blocks.folder / f"rates-{model.fingerprint[:16]}-{model.device.type}.json")
        self._cache: DocumentCache | None = None
        coder = None
        if model.writes and model.probe.rope is not None:
            coder = BlockCoder(model, check_codec(base.manifest.codec), salt)
            self._cache = DocumentCache(
                coder, base.blocks, self._rates, memory_bytes=budget.memory, device_bytes=budget.device
            )
        self._reader = Reader(model, base.manifest, coder, self._rates)
        read_ahead = self._cache.read_ahead if self._cache is not None else None
        self._searcher = Searcher(model, base, instruction=instruction, read_ahead=read_ahead)
        self._verdicts = verdicts.load(model.fingerprint)
        self._preparer = Preparer(
            model, base, self._cache, rates=self._rates, verdicts=self._verdicts, instruction=instruction
        )

    @classmethod
    def open(
        cls,
        folder_or_url: str | os.PathLike[str],
        model: GritModel,
        *,
        instruction: str | None = None,
        codec: str | None = None,
        chunk_tokens: int | None = None,
        chunk_overlap: int | None = None,
        tenant: str = "",
        budget: Budget | None = None,
    ) -> Rag:
        """The knowledge base of a folder, an object-storage URI or a ``postgresql://`` address; made if there is none.

        ``instruction`` is what queries are embedded with, for checkpoints that were trained so; documents get none.
        ``codec`` (int8 by default), ``chunk_tokens`` and ``chunk_overlap`` count when it is made. Key-values of one
        ``tenant`` are out of another's reach.

        Raises:
            InputError: for an instruction that the model's prompt format has no place for, or an unknown codec.
            StoreError: for one of another model, codec or format, or a place that holds something else.
            MissingExtraError: without the packages of ``gritkit[rag]``.
        """
        model.tokens.format.embed_prefix("query", instruction)
        salt, budget = check_text(tenant, "tenant"), budget or Budget()
        if codec is None:
            stored = place_of(folder_or_url).read()
            codec = DEFAULT_CODEC if stored is None else stored.codec
        manifest = manifest_of(model, codec=codec, chunk_tokens=chunk_tokens, chunk_overlap=chunk_overlap)
        base = KnowledgeBase.open(folder_or_url, manifest=manifest)
        base.blocks.max_bytes = _free_half(base.blocks) if budget.disk is None else budget.disk
        return cls(model, base, instruction=instruction, salt=salt, budget=budget)

    def __enter__(self) -> Rag:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files. Everything added is on disk already."""
        self._rates.save()
        self.base.close()

    def __len__(self) -> int:
        """Documents."""
        return self.base.store.size().documents

    def resize(self, memory_bytes: int) -> None:
        """Another ``Budget.memory`` from now on, for one that shares its memory with others that come and go."""
        if self._cache is not None:
            self._cache.resize(Budget(memory=memory_bytes).memory)

    @property
    def reader(self) -> Reader:
        """What reads documents; it needs no knowledge base."""
        return self._reader

    @property
    def counts(self) -> Counter[str]:
        """Reads of key-values so far: by tier, ``lost``, and the block store's ``damaged`` and ``evicted``."""
        blocks = {name: self.base.blocks.counts[name] for name in ("damaged", "evicted")}
        return Counter(blocks) + (self._cache.counts if self._cache else Counter())

    # -- documents -----------------------------------------------------------------------------------------------

    def add(
        self,
        documents: Iterable[Document | str] | Document | str,
        *,
        on_error: OnError | None = None,
        progress: bool = False,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> AddReport:
        """Read documents and keep them, commit by commit. A known id is replaced, an unchanged document is skipped.

        A long document is cut into chunks. With ``on_error`` a document that cannot be taken is handed to it (id,
        reason) and the rest goes on; what was committed stays in any case. ``cancelled`` is asked between passes of
        the model whether to stop: then nothing of the commit that has begun is kept.

        Raises:
            InputError: naming the document's id, for one without words. StoreError: when the disk refuses. AddStopped:
                when ``cancelled`` said so.
        """
        if isinstance(documents, (str, Document)):
            documents = [documents]
        adder = Adder(self.base, self._reader, on_error, cancelled)
        try:
            with current(self.base):
                return add_documents(adder, documents, progress=progress)
        finally:  # what was committed before an error is gone as well
            if self._cache is not None and adder.dropped:
                self._cache.drop(adder.dropped)

    def delete(self, ids: str | Iterable[str]) -> int:
        """Remove documents with their key-values; unknown ids are passed over. Returns how many there were."""
        given = [check_text(id, "a document's id") for id in ([ids] if isinstance(ids, str) else ids)]
        heads = self.base.store.heads(given) if self._cache is not None else {}
        removed = self.base.delete(given)
        if self._cache is not None:
            self._cache.drop(key for head in heads.values() for key in head.block_keys)
        return removed

    def documents(self, limit: int = 100, after: str | None = None) -> list[DocumentInfo]:
        """The first so many documents by id, of those whose id follows ``after``: all of them in pages.

        Raises:
            InputError: for a ``limit`` below 1.
        """
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
            raise InputError(f"limit={limit!r} must be a whole number of at least 1")
        with current(self.base):
            found = self.base.store.listed(limit, None if after is None else check_text(after, "a document's id"))
        return [DocumentInfo(one.document, own_metadata(one.metadata, one.tags), one.chunks) for one in found]

    def stats(self) -> Stats:
        """What the knowledge base holds."""
        return self.base.stats()

    def verify(self) -> VerifyReport:
        """Read everything and set right what can be; missing key-values are computed again."""
        coder = self._cache.coder if self._cache is not None else None
        if coder is None:
            return self.base.verify()

        def recompute(rows: list[Row]) -> list[Block]:
            _, documents = self.model.read_tokens([tokens_of(self.model, row) for row in rows])
            return [coder.block(document) for document in documents]

        return self.base.verify(recompute)

    # -- search --------------------------------------------------------------------------------------------------

    def search(
        self,
        query: str,
        top_k: int = 10,
        where: Mapping[str, Any] | None = None,
        *,
        by: Search = "dense",
        rerank: bool = False,
    ) -> list[Hit]:
        """The chunks that suit the query best, best first, among those whose metadata has all that ``where`` names.

        ``rerank`` orders four times as many by the likelihood of the query given each of them (:meth:`GritModel.score`)
        and keeps the best.

        Raises:
            InputError: for an empty query, ``top_k`` below 1, or a filter that is none.
        """
        return [_hit(row, score) for row, score in self._searcher.ranked(query, top_k, where, by=by, rerank=rerank)]

    # -- answers -------------------------------------------------------------------------------------------------

    def ask(self, question: str, **options: Any) -> Answer:
        """An answer from the documents that suit the question; the keywords are those of :meth:`stream`.

        Raises:
            InputError: for an empty question, an empty knowledge base, or when not even one document fits.
            UnsupportedModelError: for key-values of a model whose documents cannot be moved, or that cannot write.
        """
        *_, answer = self.stream(question, **options)
        assert isinstance(answer, Answer)
        return answer

    def stream(
        self,
        question: str,
        *,
        top_k: int = 3,
        where: Mapping[str, Any] | None = None,
        by: Search = "dense",
        rerank: bool = False,
        reuse: str = "auto",
        join: Join | None = None,
        link_tokens: int | None = None,
        earlier: Sequence[Message] = (),
        **sampling: Any,
    ) -> Iterator[RagEvent]:
        """As :meth:`ask`, while it comes: Sources, then Deltas, then the Answer.

        ``reuse`` is a way of :data:`gritkit.rag.documents.Reuse`, or "auto" (``gritkit.rag.ladder`` has the order).
        ``join`` says what every document but the first leaves out, ``link_tokens`` how many tokens of each are computed
        again with "linked"; None leaves both to the gate. ``earlier`` is the conversation that led to the question: the
        model reads it, the search does not. ``sampling`` as in :meth:`GritModel.chat`. Documents that
        leave no room for the question and ``max_new_tokens`` are dropped, and listed in the answer.
        """
        params = SamplingParams.of(sampling)
        joined = self.joined(reuse, join, link_tokens)
        search = {"top_k": top_k, "where": where, "by": by, "rerank": rerank, "earlier": earlier}
        return self._stream(question, search, reuse, joined, link_tokens, params)

    def joined(self, reuse: str = "auto", join: Join | None = None, link_tokens: int | None = None) -> Join:
        """The ``join`` that an answer's documents will have, before :meth:`find` and :meth:`prepare`.

        Raises:
            InputError, UnsupportedModelError: for options that are none, that this model cannot do, or that do not go
                together.
        """
        ladder.check_reuse(reuse)
        if reuse not in ("auto", "off"):
            _ = self.model.rope  # raises with the reason where documents cannot be moved
            if not self.model.writes:
                raise UnsupportedModelError("this checkpoint has no language-model head: it searches but cannot answer")
        if link_tokens is not None and (not isinstance(link_tokens, int) or link_tokens < 1 or reuse != "linked"):
            raise InputError(f"link_tokens={link_tokens!r} must be at least 1, and goes with reuse='linked' alone")
        return ladder.join_of(None if join is None else check_join(join), self._verdicts, self.base.manifest.codec)

    def _stream(
        self,
        text: str,
        search: dict[str, Any],
        reuse: str,
        join: Join,
        link_tokens: int | None,
        params: SamplingParams,
    ) -> Iterator[RagEvent]:
        clock = Clock()
        question = self.find(text, **search, join=join, params=params)
        yield from answer_events(self.model, question, lambda: self.prepare(question, reuse, join, link_tokens), clock)

    def find(
        self,
        question: str,
        *,
        top_k: int = 3,
        where: Mapping[str, Any] | None = None,
        by: Search = "dense",
        rerank: bool = False,
        join: Join = "no-bos",
        params: SamplingParams | None = None,
        max_tokens: int | None = None,
        earlier: Sequence[Message] = (),
    ) -> Question:
        """The first half of :meth:`stream`: the chunks that an answer will read, as many as there is room for.

        ``max_tokens`` is that room, for documents, question and answer together, where it is less than the context.
        What holds the chunks' key-values begins to read them ahead. Raises InputError as :meth:`ask` does.
        """
        clock, params = Clock(), params or SamplingParams()
        ranked = self._searcher.ranked(question, top_k, where, by=by, rerank=rerank)
        searched = clock.seconds
        if not ranked:
            raise InputError(self._nothing_found(by, where))
        if self._cache is not None:
            self._cache.read_ahead([row.block_key for row, _ in ranked])
        found = [Found(_hit(row, score), row) for row, score in ranked]
        needed = len(self.model.tokens.question_prompt(question, earlier)) + params.max_new_tokens
        left_out = min(num_left_out(self.model, join, [row for row, _ in ranked]))
        length = self.model.context_length
        used, dropped = fitting(found, needed, left_out, length if max_tokens is None else min(length, max_tokens))
        return Question(question, used, dropped, params, searched, earlier)

    def _nothing_found(self, by: Search, where: Mapping[str, Any] | None) -> str:
        if not len(self):
            return "the knowledge base is empty: add documents before asking"
        words = "shares a word with the question" if by == "text" else ""
        place = f"suits where={where!r:.80}" if where else ""
        return f"no document {' and '.join(filter(None, (words, place))) or 'was found'}"

    def prepare(self, question: Question, reuse: str, join: Join, link_tokens: int | None = None) -> Prepared:
        """The second half: decide the way, and have the request that the decoder is to run, documents loaded."""
        prepared = self._preparer.prepare(question, reuse, join, link_tokens)
        self.answers[prepared.way.reuse] += 1
        return prepared


def _hit(row: Row, score: float) -> Hit:
    return Hit(row.document, row.text, score, json.loads(row.metadata), row.number)


def _free_half(blocks: BlockStore) -> int:
    """Half of the free bytes of the disk that holds the blocks, and what they take already."""
    existing = next(parent for parent in (blocks.folder, *blocks.folder.parents) if parent.exists())
    return shutil.disk_usage(existing).free // 2 + blocks.num_bytes
