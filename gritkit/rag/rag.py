"""Rag: a knowledge base of documents that are read once, and the answers that start from them.

A document goes through the model once, when it is added: its vector and its row go to the store, its key-values to the
block store beside it. An answer lays the key-values of the documents it found one after the other and computes the
question alone. The blocks of a row are written before the row; a block that is missing or damaged later is computed
again from the stored text and written back.

    folder   gritkit_kb.json (manifest)   documents.lance (rows)   blocks/ (key-values)

This module knows nothing about attention, file formats or the database.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tqdm.auto import tqdm

from gritkit.batch import token_budget
from gritkit.errors import InputError, StoreError
from gritkit.files import resolve
from gritkit.generation.params import SamplingParams
from gritkit.kv.blocks import BlockStore
from gritkit.kv.dockv import DocKV
from gritkit.model import GritModel
from gritkit.rag.answering import Clock, Found, Question, answer_events, fitting
from gritkit.rag.documents import (
    AddReport,
    Answer,
    Document,
    Hit,
    RagEvent,
    Reuse,
    tags_of,
    tags_to_find,
    to_json,
)
from gritkit.rag.lance import LanceStore
from gritkit.rag.manifest import Manifest
from gritkit.rag.store import DocumentStore, Row
from gritkit.tokens import TokenSeq, check_text

_ROWS_AT_ONCE = 256
"""Documents of one table write."""
_READ_TOKENS = 4096
"""Tokens whose key-values are in memory at once while documents are added; at least one packed row."""

_log = logging.getLogger("gritkit")


class Rag:
    """A knowledge base and the model that reads it; made by :meth:`open`, best in a ``with`` block."""

    def __init__(
        self, model: GritModel, store: DocumentStore, blocks: BlockStore, *, instruction: str | None = None
    ) -> None:
        self._model = model
        self._instruction = instruction
        self._store = store
        self._blocks = blocks
        self._caches = model.writes and model.probe.rope is not None

    @classmethod
    def open(cls, folder_or_url: str | os.PathLike[str], model: GritModel, *, instruction: str | None = None) -> Rag:
        """The knowledge base of a folder, made when there is none.

        ``instruction`` is what queries are embedded with, for checkpoints that were trained so; documents get none.

        Raises:
            InputError: for an instruction that the model's prompt format has no place for.
            StoreError: for a folder of another model or format, one that holds something else, or a server's address.
            MissingExtraError: without the packages of ``gritkit[rag]``.
        """
        where = os.fspath(folder_or_url)
        if "://" in where:
            kind = where.split("://")[0]
            raise StoreError(f"{kind}:// knowledge bases are not available in this release: give a local folder")
        model.tokens.format.embed_prefix("query", instruction)
        folder = resolve(where)
        blocks = BlockStore(folder / "blocks", model.fingerprint)
        manifest = Manifest(
            fingerprint=model.fingerprint, dim=model.dim, prompt_format=model.embedding_config.prompt_format
        )
        manifest.open(folder)
        return cls(model, LanceStore(folder, model.dim), blocks, instruction=instruction)

    def __enter__(self) -> Rag:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files. Everything added is on disk already."""
        self._store.close()

    def __len__(self) -> int:
        return len(self._store)

    # -- documents -----------------------------------------------------------------------------------------------

    def add(
        self, documents: Iterable[Document | str] | Document | str, *, truncate: bool = False, progress: bool = False
    ) -> AddReport:
        """Read documents and keep them, batch by batch. One whose id is known replaces it; unchanged ones are skipped.

        ``truncate`` cuts a document to ``max_length`` for the model; the stored text stays whole.

        Raises:
            InputError: naming the document's id, for one that is empty or too long. Batches before it are kept.
            StoreError: when the disk refuses.
        """
        counts = {"added": 0, "updated": 0, "skipped": 0}
        if isinstance(documents, (str, Document)):
            documents = [documents]
        total = len(documents) if isinstance(documents, Sequence) else None
        with tqdm(total=total, unit=" docs", disable=None if progress else True, smoothing=0.05) as bar:
            for batch in _batches(documents):
                self._add(batch, counts, truncate)
                bar.update(len(batch))
        return AddReport(**counts)

    def delete(self, ids: str | Iterable[str]) -> int:
        """Remove documents with their key-values; unknown ids are passed over. Returns how many there were."""
        given = list(
            dict.fromkeys(check_text(id, "a document's id") for id in ([ids] if isinstance(ids, str) else ids))
        )
        rows = self._store.get(given)
        removed = self._store.delete(given)
        self._drop_blocks(row.block_key for row in rows.values())
        return removed

    def _add(self, batch: Mapping[str, Document], counts: dict[str, int], truncate: bool) -> None:
        sequences = {one.id: self._tokens(one, truncate) for one in batch.values()}
        known = self._store.get(list(batch))
        rows: list[Row] = []
        unread: list[Document] = []
        for document in batch.values():
            old = known.get(document.id)
            ids = tuple(sequences[document.id].ids.tolist())
            if old is None or (old.text, old.token_ids, old.fingerprint) != (
                document.text,
                ids,
                self._model.fingerprint,
            ):
                unread.append(document)
            elif old.metadata != to_json(dict(document.metadata)):
                rows.append(self._row(document, old.vector, ids, old.block_key))
            else:
                counts["skipped"] += 1
        for group in _groups(unread, sequences, max(_READ_TOKENS, token_budget(self._model.device))):
            rows += self._read(group, sequences, truncate)
        self._store.upsert(rows)
        counts["updated"] += sum(row.id in known for row in rows)
        counts["added"] += sum(row.id not in known for row in rows)
        now = {row.id: row.block_key for row in rows}
        self._drop_blocks(old.block_key for id, old in known.items() if now.get(id, old.block_key) != old.block_key)

    def _tokens(self, document: Document, truncate: bool) -> TokenSeq:
        try:
            (tokens,) = self._model.tokens.to_embed(
                [document.text], "passage", None, self._max_length, truncate=truncate
            )
        except InputError as error:
            raise InputError(f"document {document.id!r} cannot be added: {error}") from None
        return tokens

    def _read(self, documents: Sequence[Document], sequences: Mapping[str, TokenSeq], truncate: bool) -> list[Row]:
        """One pass over a group: vectors, and the key-values to their blocks. Rows to be written after them."""
        texts = [document.text for document in documents]
        if self._caches:
            vectors, caches = self._model.read(texts, max_length=self._max_length, truncate=truncate)
            keys = self._blocks.put_many(caches)
        else:
            vectors = self._model.embed(texts, max_length=self._max_length, truncate=truncate)
            keys = [""] * len(texts)
        return [
            self._row(document, vector, tuple(sequences[document.id].ids.tolist()), key)
            for document, vector, key in zip(documents, vectors, keys, strict=True)
        ]

    def _row(self, document: Document, vector: Any, token_ids: tuple[int, ...], block_key: str) -> Row:
        return Row(
            id=document.id,
            text=document.text,
            metadata=to_json(dict(document.metadata)),
            tags=tags_of(document.metadata),
            vector=vector,
            token_ids=token_ids,
            block_key=block_key,
            fingerprint=self._model.fingerprint,
        )

    def _drop_blocks(self, keys: Iterable[str]) -> None:
        """Delete blocks that no row needs any more (equal texts under two ids share one)."""
        unused = {key for key in keys if key}
        for key in unused - self._store.referenced(sorted(unused)):
            self._blocks.delete(key)

    @property
    def _max_length(self) -> int:
        return min(self._model.embedding_config.max_length, self._model.context_length)

    # -- answers -------------------------------------------------------------------------------------------------

    def search(self, query: str, top_k: int = 10, where: Mapping[str, Any] | None = None) -> list[Hit]:
        """The documents nearest to the query, best first, among those whose metadata has all that ``where`` names.

        Raises:
            InputError: for an empty query, ``top_k`` below 1, or a filter that is none.
        """
        return [_hit(row, score) for row, score in self._ranked(query, top_k, where)]

    def ask(
        self,
        question: str,
        *,
        top_k: int = 3,
        where: Mapping[str, Any] | None = None,
        reuse: str = "auto",
        **sampling: Any,
    ) -> Answer:
        """An answer from the documents nearest to the question; ``sampling`` as in :meth:`GritModel.chat`.

        ``reuse``: "cached" starts from the documents' stored key-values and computes the question alone; "off" computes
        the same tokens anew, as one causal prompt; "auto" is "cached" wherever the model can move its documents.
        Documents that leave no room for the question and ``max_new_tokens`` are dropped, and listed in the answer.

        Raises:
            InputError: for an empty question, an empty knowledge base, or when not even one document fits.
            UnsupportedModelError: for "cached" on a model whose documents cannot be moved, or one that cannot write.
        """
        *_, answer = self.stream(question, top_k=top_k, where=where, reuse=reuse, **sampling)
        assert isinstance(answer, Answer)
        return answer

    def stream(
        self,
        question: str,
        *,
        top_k: int = 3,
        where: Mapping[str, Any] | None = None,
        reuse: str = "auto",
        **sampling: Any,
    ) -> Iterator[RagEvent]:
        """As :meth:`ask`, while it comes: Sources, then Deltas, then the Answer."""
        params = SamplingParams.of(sampling)
        return self._stream(question, top_k, where, self._reuse(reuse), params)

    def _stream(
        self, question: str, top_k: int, where: Mapping[str, Any] | None, reuse: Reuse, params: SamplingParams
    ) -> Iterator[RagEvent]:
        clock = Clock()
        ranked = self._ranked(question, top_k, where)
        searched = clock.seconds
        if not ranked:
            raise InputError(
                "the knowledge base is empty: add documents before asking"
                if not len(self)
                else f"no document has the metadata that where={where!r:.80} asks for"
            )
        prompt_ids = self._model.tokens.question_prompt(question)
        found = [Found(_hit(row, score), row) for row, score in ranked]
        num_bos = len(self._model.tokens.bos_ids)
        needed = len(prompt_ids) + params.max_new_tokens
        used, dropped = fitting(found, num_bos, needed, self._model.context_length)
        asked = Question(prompt_ids, used, dropped, num_bos, params, reuse, searched)
        yield from answer_events(self._model, asked, self._load, clock)

    def _reuse(self, asked: str) -> Reuse:
        if asked in ("prefix", "linked"):
            raise InputError(f"reuse={asked!r} is not available in this release: use 'auto', 'cached' or 'off'")
        if asked not in ("auto", "cached", "off"):
            raise InputError(f"reuse={asked!r} is not one of 'auto', 'cached', 'off'")
        if asked == "cached":
            _ = self._model.rope  # raises with the reason where documents cannot be moved
        return "cached" if asked == "cached" or (asked == "auto" and self._caches) else "off"

    def _ranked(self, query: str, top_k: int, where: Mapping[str, Any] | None) -> list[tuple[Row, float]]:
        if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1:
            raise InputError(f"top_k={top_k!r} must be a whole number of at least 1")
        tags = tags_to_find(where)
        if not isinstance(query, str) or not query.strip():
            raise InputError(f"the query is empty or no text: {query!r:.60}")
        vector = self._model.embed(query, role="query", instruction=self._instruction, max_length=self._max_length)
        return self._store.search(vector, top_k, tags)

    def _load(self, rows: Sequence[Row]) -> tuple[list[DocKV], int]:
        """The key-values of rows in their order, and how many of them had to be computed again."""
        documents, recomputed = [], 0
        for row in rows:
            document = self._blocks.get(row.block_key) if row.block_key else None
            if document is None:
                document = self._read_again(row)
                recomputed += 1
            documents.append(document)
        return documents, recomputed

    def _read_again(self, row: Row) -> DocKV:
        # max_length = what was read then: a document that was cut is cut at the same place
        _, (document,) = self._model.read([row.text], max_length=len(row.token_ids), truncate=True)
        if document.ids != row.token_ids:
            raise StoreError(
                f"document {row.id!r} was read in another prompt format than today's: "
                "index the documents again into a new folder"
            )
        try:
            self._blocks.put(document)
        except StoreError as error:
            _log.warning("the recomputed key-values of document %r are not kept: %s", row.id, error)
        return document


def _hit(row: Row, score: float) -> Hit:
    return Hit(row.id, row.text, score, json.loads(row.metadata))


def _batches(documents: Iterable[Document | str]) -> Iterator[dict[str, Document]]:
    """Documents by id, a write's worth at a time; one whose id is waiting already begins the next batch."""
    if not isinstance(documents, Iterable) or isinstance(documents, (bytes, Mapping)):
        raise InputError(f"documents must be an iterable of Document or str, not {type(documents).__name__}")
    batch: dict[str, Document] = {}
    for index, given in enumerate(documents):
        if not isinstance(given, (Document, str)):
            raise InputError(f"document {index} is {type(given).__name__}: give a Document or a str")
        document = Document(given) if isinstance(given, str) else given
        if document.id in batch or len(batch) == _ROWS_AT_ONCE:
            yield batch
            batch = {}
        batch[document.id] = document
    if batch:
        yield batch


def _groups(documents: Sequence[Document], sequences: Mapping[str, TokenSeq], budget: int) -> Iterator[list[Document]]:
    """Neighbouring documents of at most ``budget`` tokens together, a longer one alone."""
    group: list[Document] = []
    room = budget
    for document in documents:
        size = len(sequences[document.id])
        if group and size > room:
            yield group
            group, room = [], budget
        group.append(document)
        room -= size
    if group:
        yield group
