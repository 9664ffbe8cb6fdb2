"""Documents -> a knowledge base, commit by commit: what changed is read, what did not is passed over.

Blocks are written while the next texts are read by the model; the rows of a commit follow when all of its blocks are on
the disk. A document is in one commit with all its chunks, so a kill leaves whole documents and the next run goes on.
Who changes his mind does not wait for the commit: nothing of it is left.

This module knows nothing about how documents are cut, read or stored.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

from tqdm.auto import tqdm

from gritkit.errors import GritkitError, InputError
from gritkit.kv.blocks import Block
from gritkit.kv.codecs import check_codec
from gritkit.model import GritModel
from gritkit.rag.base import KnowledgeBase
from gritkit.rag.checking import by_document
from gritkit.rag.coding import BlockCoder
from gritkit.rag.documents import AddReport, Document
from gritkit.rag.reader import Piece, Reader, manifest_of, same_text, with_metadata
from gritkit.rag.store import Row

OnError = Callable[[str, str], None]
"""Called with a document's id and the reason why it was not taken."""
_DOCUMENTS_AT_ONCE = 256
_CHARACTERS_AT_ONCE = 1 << 22
"""Of one commit, but for a document that is longer."""


class AddStopped(GritkitError):
    """Adding ended where its caller wanted it to; what was committed before stays."""


class Adder:
    """Adds documents to a knowledge base and keeps count.

    ``cancelled`` is asked between passes of the model, and when documents are cut: True ends it by AddStopped.
    """

    def __init__(
        self,
        base: KnowledgeBase,
        reader: Reader,
        on_error: OnError | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self._base = base
        self._reader = reader
        self._on_error = on_error
        self._cancelled = cancelled
        self.counts = dict.fromkeys(("added", "updated", "skipped", "failed", "chunks"), 0)
        self.dropped: set[str] = set()
        """Blocks that documents had before and have no longer."""

    @property
    def report(self) -> AddReport:
        return AddReport(**self.counts)

    def add(self, documents: Mapping[str, Document]) -> None:
        """One commit: documents by their ids."""
        self._tick()
        heads = self._base.store.heads(list(documents))
        pieces: list[Piece] = []
        rows: list[Row] = []
        for document in documents.values():
            head, digest = heads.get(document.id), self._reader.digest(document)
            if head is not None and head.digest == digest:
                self.counts["skipped"] += 1
                continue
            if head is not None and same_text(head.digest, digest):
                kept = self._base.store.get([document.id]).get(document.id, [])
                rows += [with_metadata(row, document, digest) for row in kept]
            else:
                try:
                    pieces += self._reader.cut(document, tick=self._tick)
                except InputError as error:
                    self._failed(document.id, error)
                    continue
            self.counts["added" if head is None else "updated"] += 1
        rows += self._read(pieces)
        self._base.replace(rows)
        now = {row.block_key for row in rows}
        changed = {row.document for row in rows}
        self.dropped |= {key for id, head in heads.items() if id in changed for key in head.block_keys} - now - {""}

    def _read(self, pieces: Sequence[Piece]) -> list[Row]:
        self.counts["chunks"] += len(pieces)
        return read_blocks(self._base, self._reader, pieces, tick=self._tick)

    def _tick(self) -> None:
        if self._cancelled():
            raise AddStopped("adding was stopped: what was committed before stays")

    def _failed(self, id: str, error: InputError) -> None:
        if self._on_error is None:
            raise error
        self.counts["failed"] += 1
        self._on_error(id, str(error))


def read_blocks(
    base: KnowledgeBase, reader: Reader, pieces: Sequence[Piece], *, tick: Callable[[], object] = lambda: None
) -> list[Row]:
    """Read pieces and put their blocks, the one while the other; the rows of all of them, to be written now.

    ``tick`` is called after each pass of the model; AddStopped from it leaves no block that nobody needs.
    """
    rows: list[Row] = []
    written: dict[str, int | None] = {}

    def put(some: Sequence[Row], blocks: Sequence[Block]) -> None:
        written.update(base.put_blocks(blocks, {row.block_key for row in some} - {""}))

    try:
        with ThreadPoolExecutor(1) as pool:
            writing: Future[Any] | None = None
            for some, blocks in reader.read(pieces):
                if writing is not None:
                    writing.result()
                tick()
                writing = pool.submit(put, some, blocks)
                rows += some
            if writing is not None:
                writing.result()
    except AddStopped:
        base.take_back(written)
        raise
    return rows


def add_documents(adder: Adder, documents: Iterable[Document | str], *, progress: bool = False) -> AddReport:
    """Add all of them; what was committed stays, whatever comes after it."""
    total = len(documents) if isinstance(documents, Sequence) else None
    with tqdm(total=total, unit=" docs", disable=None if progress else True, smoothing=0.05) as bar:
        for batch in batches(documents):
            adder.add(batch)
            bar.update(len(batch))
    return adder.report


def batches(documents: Iterable[Document | str]) -> Iterator[dict[str, Document]]:
    """Documents by id, a commit's worth at a time; one whose id is waiting already begins the next."""
    if not isinstance(documents, Iterable) or isinstance(documents, (bytes, Mapping)):
        raise InputError(f"documents must be an iterable of Document or str, not {type(documents).__name__}")
    batch: dict[str, Document] = {}
    size = 0
    for index, given in enumerate(documents):
        if not isinstance(given, (Document, str)):
            raise InputError(f"document {index} is {type(given).__name__}: give a Document or a str")
        document = Document(given) if isinstance(given, str) else given
        full = len(batch) == _DOCUMENTS_AT_ONCE or size + len(document.text) > _CHARACTERS_AT_ONCE
        if batch and (full or document.id in batch):
            yield batch
            batch, size = {}, 0
        batch[document.id] = document
        size += len(document.text)
    if batch:
        yield batch


def reindex(where: str | os.PathLike[str], model: GritModel, *, progress: bool = False) -> AddReport:
    """Read every chunk of a knowledge base again with another model, and put the result in its place at once.

    Chunks stay as they were cut, so each must fit the new model. Until the switch readers find the old ones, and a kill
    leaves them.

    Raises:
        InputError: naming the chunk that does not fit. StoreError: where there is no knowledge base, or the disk
            refuses.
    """
    with KnowledgeBase.open(where) as base:
        old = base.manifest
        longest = min(old.chunk_tokens, model.embedding_config.max_length, model.context_length)
        overlap = min(old.chunk_overlap, longest // 2)
        manifest = manifest_of(model, codec=old.codec, chunk_tokens=longest, chunk_overlap=overlap)
        movable = model.writes and model.probe.rope is not None
        reader = Reader(model, manifest, BlockCoder(model, check_codec(old.codec)) if movable else None)
        total = base.store.size().documents
        chunks = 0
        with (
            base.begin_generation(manifest) as new,
            tqdm(total=total, unit=" docs", disable=None if progress else True) as bar,
        ):
            stored = by_document(base.store.scan())
            while some := list(islice(stored, _DOCUMENTS_AT_ONCE)):
                pieces = [reader.again(row) for rows in some for row in rows]
                new.replace(read_blocks(new, reader, pieces))
                chunks += len(pieces)
                bar.update(len(some))
            base.switch_to(new)
        return AddReport(updated=total, chunks=chunks)
