"""Indexing in three places: documents are fed in batches, read by a model elsewhere, and written where they belong.

    feed      where the files are    Document -> Batch: what changed since it was indexed, the rest counted
    Worker    where the model is     Batch -> Parcels: rows and blocks, a few at a time
    Intake    where the store is     Parcel -> commits: a document is written when all of it is there

Batches and parcels may come in any order, twice or not at all: the intake puts documents together by their place in
their batch, writes under the document's id, and knows at the end whether anything is missing. What is missing is found
by feeding again, because everything else is there and unchanged then.

This module knows nothing about how batches and parcels travel (:mod:`gritkit.rag.ray_index`), models or files.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gritkit.errors import GritkitError, InputError
from gritkit.kv.blocks import Block
from gritkit.rag.adding import OnError, batches
from gritkit.rag.base import KnowledgeBase
from gritkit.rag.documents import AddReport, Document
from gritkit.rag.manifest import Manifest
from gritkit.rag.reader import Piece, Reader, same_text, with_metadata
from gritkit.rag.sources import Failure
from gritkit.rag.store import Row

PARCEL_BYTES = 32 << 20
"""Of key-values in one parcel, but for a chunk that has more."""
_BATCH_CHARACTERS = 1 << 16
"""Of one batch, but for a document that is longer."""
_TALLY = 1024
"""Documents that are passed over before a batch is sent to say so."""
_COMMIT_DOCUMENTS = 256
_COMMIT_CHARACTERS = 1 << 22
_COMMIT_SECONDS = 10.0
"""How long a finished document waits for others to share its commit."""


Share = Callable[[], Iterable[Document | Failure]]
"""Opens a part of what is to be indexed. It is called again when something was lost, and gives the same again."""


@dataclass(frozen=True)
class Batch:
    """A part of a share: documents to read, and what became of those that need not be read."""

    share: int
    number: int
    """From 0 on, without gaps."""
    documents: list[Document]
    known: list[bool]
    """Which of them the knowledge base has in an older version."""
    retagged: list[Document] = field(default_factory=list)
    """Those with the same text and other metadata: no model is needed."""
    skipped: int = 0
    refused: list[Failure] = field(default_factory=list)
    last: bool = False
    """Of its share."""


@dataclass(frozen=True)
class Parcel:
    """A part of a batch that was read: some rows, each with the place of its document in the batch."""

    share: int
    number: int
    """Of the batch."""
    known: tuple[bool, ...]
    """As in the batch; it says how many documents there are."""
    about: Batch | None = None
    """The batch without its documents; it comes once."""
    rows: list[tuple[int, Row]] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    refused: list[tuple[int, Failure]] = field(default_factory=list)


def feed(
    share: Share, number: int, base: KnowledgeBase, *, batch_size: int, leave_out: frozenset[str] = frozenset()
) -> Iterator[Batch]:
    """The batches of a share: documents that the knowledge base does not have like this, but for those left out."""
    refused: list[Failure] = []
    digest = _Digester(base.manifest).digest
    index = 0
    pending = Batch(number, 0, [], [])
    for given in batches(_taken(share(), refused, leave_out)):
        heads = base.store.heads(list(given))
        skipped, retagged = 0, []
        for document in given.values():
            head, now = heads.get(document.id), digest(document)
            if head is not None and head.digest == now:
                skipped += 1
            elif head is not None and same_text(head.digest, now):
                retagged.append(document)
            else:
                if _is_full(pending, document, batch_size):
                    yield pending
                    index += 1
                    pending = Batch(number, index, [], [])
                pending.documents.append(document)
                pending.known.append(head is not None)
        pending = dataclasses.replace(
            pending,
            retagged=pending.retagged + retagged,
            skipped=pending.skipped + skipped,
            refused=pending.refused + refused,
        )
        refused.clear()
        if pending.skipped >= _TALLY or len(pending.retagged) + len(pending.refused) >= batch_size:
            yield pending
            index += 1
            pending = Batch(number, index, [], [])
    yield dataclasses.replace(pending, refused=pending.refused + refused, last=True)


class Worker:
    """Reads batches with a model."""

    def __init__(self, reader: Reader, *, fatal: tuple[type[Exception], ...] = ()) -> None:
        self._reader = reader
        self._fatal = fatal
        """Errors after which nothing that this process reads can be trusted to fail for its own reasons."""

    def read(self, batch: Batch) -> Iterator[Parcel]:
        """At least one parcel; together all documents, as rows or as refused. A document fails alone."""
        known = tuple(batch.known)
        empty = Parcel(batch.share, batch.number, known)
        cut: dict[int, list[Piece]] = {}
        refused = []
        for place, document in enumerate(batch.documents):
            try:
                cut[place] = self._reader.cut(document)
            except Exception as error:
                refused.append((place, _refusal(document.id, error)))
        about = dataclasses.replace(batch, documents=[])
        yield dataclasses.replace(empty, about=about, refused=refused)
        sent = 0
        places = [place for place, pieces in cut.items() for _ in pieces]
        try:
            for rows, blocks in self._reader.read([piece for pieces in cut.values() for piece in pieces]):
                yield from _parcels(empty, list(zip(places[sent:], rows, strict=False)), blocks)
                sent += len(rows)
        except self._fatal:
            raise
        except Exception:
            for place in dict.fromkeys(places[sent:]):
                yield from self._alone(empty, place, cut[place])

    def _alone(self, empty: Parcel, place: int, pieces: Sequence[Piece]) -> Iterator[Parcel]:
        """One document, after those that it was read with failed together."""
        try:
            for rows, blocks in self._reader.read(pieces):
                yield from _parcels(empty, [(place, row) for row in rows], blocks)
        except self._fatal:
            raise
        except Exception as error:
            yield dataclasses.replace(empty, refused=[(place, _refusal(pieces[0].document, error))])


@dataclass
class _Open:
    """A batch of which something has come and something has not."""

    rows: dict[int, dict[int, Row]] = field(default_factory=dict)
    """By the document's place and the chunk's number."""
    done: set[int] = field(default_factory=set)
    """Places of documents that are whole or refused."""
    told: bool = False
    """What its batch says about documents that need not be read is counted."""


@dataclass
class _ShareSeen:
    """How much of a share has come in this pass."""

    batches: bytearray = field(default_factory=bytearray)
    """A 1 for each whole batch."""
    length: int | None = None
    """How many batches it has, once the last one has come."""
    skipped: int = 0
    written: int = 0
    """Documents of all passes, which the following ones skip."""

    @property
    def whole(self) -> bool:
        return self.length is not None and len(self.batches) >= self.length and all(self.batches)


class Intake:
    """Puts documents together and writes them; counts nothing before it is on the disk."""

    def __init__(
        self,
        base: KnowledgeBase,
        num_shares: int,
        *,
        on_error: OnError | None = None,
        on_done: Callable[[int], Any] = lambda count: None,
    ) -> None:
        self._base = base
        self._on_error = on_error
        self._on_done = on_done
        self._digest = _Digester(base.manifest).digest
        self._shares = [_ShareSeen() for _ in range(num_shares)]
        self._open: dict[tuple[int, int], _Open] = {}
        self._waiting: dict[str, tuple[int, bool, list[Row]]] = {}
        """Whole documents by id: their share, whether they were known, their chunks."""
        self._retagged: dict[str, tuple[int, Document]] = {}
        self._since = 0.0
        self._counts = {"added": 0, "updated": 0, "chunks": 0}
        self.refused: set[str] = set()

    @property
    def report(self) -> AddReport:
        return AddReport(**self._counts, skipped=sum(share.skipped for share in self._shares), failed=len(self.refused))

    @property
    def written(self) -> int:
        """Documents so far."""
        return self._counts["added"] + self._counts["updated"]

    @property
    def whole(self) -> bool:
        """Whether everything that was fed has come."""
        return all(share.whole for share in self._shares)

    def begin(self) -> None:
        """Everything is fed once more; half a document of before is forgotten."""
        self.commit()
        self._open.clear()
        self._shares = [_ShareSeen(skipped=-share.written, written=share.written) for share in self._shares]

    def take(self, parcel: Parcel) -> None:
        """Blocks are on the disk when this returns; rows follow when enough of them are there to be committed."""
        key = (parcel.share, parcel.number)
        share = self._shares[key[0]]
        if len(share.batches) > key[1] and share.batches[key[1]]:
            return
        self._base.blocks.put_many(parcel.blocks)
        opened = self._open.setdefault(key, _Open())
        if parcel.about is not None and not opened.told:
            self._tell(share, parcel.about)
            opened.told = True
        for place, refused in parcel.refused:
            self.refuse(refused)
            opened.done.add(place)
        for place, row in parcel.rows:
            rows = opened.rows.setdefault(place, {})
            rows[row.number] = row
            if len(rows) == row.count:
                whole = [one for _, one in sorted(opened.rows.pop(place).items())]
                self._wait()
                self._retagged.pop(row.document, None)
                self._waiting[row.document] = (parcel.share, parcel.known[place], whole)
                opened.done.add(place)
        if opened.told and len(opened.done) == len(parcel.known):
            del self._open[key]
            share.batches.extend(bytes(max(0, key[1] + 1 - len(share.batches))))
            share.batches[key[1]] = 1
        self._commit_if_due()

    def refuse(self, refused: Failure) -> None:
        """Raises InputError where nobody asked to be told."""
        if self._on_error is None:
            raise InputError(refused.reason)
        if refused.where not in self.refused:
            self.refused.add(refused.where)
            self._on_error(refused.where, refused.reason)
            self._on_done(1)

    def commit(self) -> None:
        """Write what is whole."""
        rows = [row for _, _, document in self._waiting.values() for row in document]
        kept = self._base.store.get(list(self._retagged))
        for id, (_, document) in self._retagged.items():
            rows += [with_metadata(row, document, self._digest(document)) for row in kept.get(id, [])]
        if rows:
            self._base.replace(rows)
        for share, known, document_rows in self._waiting.values():
            self._counts["updated" if known else "added"] += 1
            self._counts["chunks"] += len(document_rows)
            self._shares[share].written += 1
        for share, _ in self._retagged.values():
            self._counts["updated"] += 1
            self._shares[share].written += 1
        self._on_done(len(self._waiting) + len(self._retagged))
        self._waiting.clear()
        self._retagged.clear()

    def _tell(self, share: _ShareSeen, batch: Batch) -> None:
        share.skipped += batch.skipped
        self._on_done(batch.skipped)
        if batch.last:
            share.length = batch.number + 1
        for refused in batch.refused:
            self.refuse(refused)
        for document in batch.retagged:
            self._wait()
            self._waiting.pop(document.id, None)
            self._retagged[document.id] = (batch.share, document)

    def _wait(self) -> None:
        if not self._waiting and not self._retagged:
            self._since = time.monotonic()

    def _commit_if_due(self) -> None:
        count = len(self._waiting) + len(self._retagged)
        size = sum(len(row.text) for _, _, rows in self._waiting.values() for row in rows)
        late = time.monotonic() - self._since > _COMMIT_SECONDS
        if count >= _COMMIT_DOCUMENTS or size >= _COMMIT_CHARACTERS or (count and late):
            self.commit()


class _Digester(Reader):
    """The half of a reader that tells documents apart, which needs no model."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest


def _taken(
    given: Iterable[Document | Failure], refused: list[Failure], leave_out: frozenset[str]
) -> Iterator[Document]:
    for one in given:
        if isinstance(one, Failure):
            refused.append(one)
        elif one.id not in leave_out:
            yield one


def _refusal(id: str, error: Exception) -> Failure:
    if isinstance(error, InputError):
        return Failure(id, str(error))
    what = str(error) if isinstance(error, GritkitError) else f"{type(error).__name__}: {error}"
    return Failure(id, f"document {id!r:.200} could not be read: {(what.splitlines() or [''])[0]}")


def _is_full(batch: Batch, document: Document, batch_size: int) -> bool:
    size = sum(len(one.text) for one in batch.documents)
    full = len(batch.documents) >= batch_size or size + len(document.text) > _BATCH_CHARACTERS
    return bool(batch.documents) and full


def _parcels(empty: Parcel, rows: list[tuple[int, Row]], blocks: Sequence[Block]) -> Iterator[Parcel]:
    """Rows, with their blocks where there are any, a parcel's worth at a time."""
    some: list[tuple[int, Row]] = []
    theirs: list[Block] = []
    size = 0
    for index, row in enumerate(rows):
        block = blocks[index] if blocks else None
        num_bytes = 0 if block is None else block.num_bytes
        if some and size + num_bytes > PARCEL_BYTES:
            yield dataclasses.replace(empty, rows=some, blocks=theirs)
            some, theirs, size = [], [], 0
        some.append(row)
        theirs += [] if block is None else [block]
        size += num_bytes
    if some:
        yield dataclasses.replace(empty, rows=some, blocks=theirs)
