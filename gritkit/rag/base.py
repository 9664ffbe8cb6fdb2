"""The knowledge base without a model: rows and key-values that change together, and what keeps them sound.

A block is durable before the row that names it, and the rows of a call are one commit of the store, so a crash at any
moment leaves every document as it was or as it was to be; what can be left behind is a block that no row names, which
:meth:`KnowledgeBase.gc` removes. Writers work beside each other; deleting, collecting, compacting and re-indexing work
alone (:mod:`gritkit.rag.lock`), so a block that a writer has put and not yet named is never taken for garbage.

This module knows nothing about models, texts or search, and imports no torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from gritkit.errors import StoreError
from gritkit.files import resolve
from gritkit.kv.blocks import Block, BlockStore
from gritkit.rag.archive import write_archive
from gritkit.rag.checking import by_document, faults
from gritkit.rag.importing import import_archive
from gritkit.rag.lock import InUseError
from gritkit.rag.manifest import FORMAT_VERSION, Manifest
from gritkit.rag.place import Place, place_of
from gritkit.rag.sealed import SealedStore
from gritkit.rag.store import Row

WAIT_S = 30.0
"""How long somebody waits for those who change the knowledge base."""
MIN_AGE_S = 3600.0
"""Orphaned blocks younger than this are left alone: somebody may be about to name them."""
_PATIENCE_S = 0.25  # for clearing away what gc would clear anyway
_log = logging.getLogger("gritkit")


@dataclass(frozen=True)
class Stats:
    """What a knowledge base holds and was made with. Sizes in bytes."""

    documents: int
    chunks: int
    blocks: int
    bytes: int
    """Everything on disk."""
    store_bytes: int
    block_bytes: int
    model: str
    """Fingerprint of the one that read the documents."""
    dim: int
    prompt_format: str
    codec: str
    chunk_tokens: int
    chunk_overlap: int
    format_version: int
    generation: int


@dataclass(frozen=True)
class GcReport:
    """What was removed."""

    blocks: int
    bytes: int
    temporary_files: int
    generations: list[int]


@dataclass
class VerifyReport:
    """What was looked at, what was set right and what could not be, a line each."""

    documents: int = 0
    chunks: int = 0
    blocks: int = 0
    missing: int = 0
    """Chunks without key-values on this machine: evicted, or never computed here. They are computed when needed."""
    repaired: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


class KnowledgeBase:
    """Rows, blocks and manifest of one place; made by :meth:`open`, best in a ``with`` block."""

    def __init__(self, place: Place, manifest: Manifest, *, max_block_bytes: int | None, wait_s: float) -> None:
        self.where = place.name
        """For messages: the address without a password."""
        self.manifest = manifest
        self.store = SealedStore(place.store(manifest))
        self.blocks = BlockStore(place.blocks, max_bytes=max_block_bytes)
        self._place = place
        self._wait_s = wait_s
        self._held: contextlib.ExitStack | None = None
        """The lock of one who works alone for longer than a call."""

    @classmethod
    def open(
        cls,
        where: str | os.PathLike[str],
        *,
        manifest: Manifest | None = None,
        max_block_bytes: int | None = None,
        wait_s: float = WAIT_S,
    ) -> KnowledgeBase:
        """The knowledge base of a folder, an object-storage URI or a ``postgresql://`` address.

        With a manifest it is made where there is none, and where there is one they must agree (:attr:`manifest` is the
        stored one: how documents are cut is decided when it is made). Without, it must exist.

        Raises:
            StoreError: for one of another model or format, none, a place that holds something else or is unreachable.
            MissingExtraError: without the packages of ``gritkit[rag]``.
        """
        place = place_of(where)
        stored = place.read()
        if stored is None:
            if manifest is None:
                raise StoreError(f"there is no knowledge base at {place.name}: make one with: gritkit index")
            fresh = max(place.generations(), default=-1) + 1  # beside what an interrupted import may have left
            stored = place.create(dataclasses.replace(manifest, generation=fresh))
        if manifest is not None:
            manifest.check_agrees(stored, place.name)
        return cls(place, stored, max_block_bytes=max_block_bytes, wait_s=wait_s)

    def __enter__(self) -> KnowledgeBase:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the store; everything written is durable already. A generation not switched to is dropped."""
        self.store.close()
        if self._held is not None:
            with self._held:
                self._held = None
                self._place.drop_generation(self.manifest.generation)

    # -- changing it ---------------------------------------------------------------------------------------------

    def replace(self, rows: Sequence[Row], blocks: Sequence[Block] = ()) -> None:
        """Every document that the rows name has exactly these chunks and their blocks afterwards, whatever it had.

        Raises:
            StoreError: when rows are of another model, the disk or the server refuses, or somebody works alone.
        """
        for row in rows:
            if row.fingerprint != self.manifest.fingerprint:
                raise StoreError(f"document {row.document!r:.80} was read by another model than that of {self.where}")
        with self._writing():
            before = self.store.heads(list(dict.fromkeys(row.document for row in rows)))
            self.blocks.put_many(blocks)
            self.store.replace(rows)
        old = {key for head in before.values() for key in head.block_keys}
        self.drop_unneeded(old - {row.block_key for row in rows})

    def drop_unneeded(self, block_keys: Iterable[str]) -> None:
        """Delete those of these blocks that no row needs; with other writers at work gc does it later."""
        given = set(block_keys) - {""}
        if given:
            with contextlib.suppress(InUseError), self._writing(alone=True, wait_s=_PATIENCE_S):
                self._drop_blocks(given)

    def put_blocks(self, blocks: Sequence[Block], keys: Collection[str]) -> dict[str, int | None]:
        """Keep blocks of these keys before their rows are there; of those that are new, when they were written."""
        new = [key for key in keys if not self.blocks.contains(key)]
        self.blocks.put_many(blocks)
        return {key: self.blocks.time_of(key) for key in new}

    def take_back(self, written: Mapping[str, int | None]) -> None:
        """Delete what :meth:`put_blocks` wrote and no row needs. What was put again since stays: a writer elsewhere is
        about to name it."""
        self.drop_unneeded(key for key, time in written.items() if self.blocks.time_of(key) == time)

    def delete(self, documents: Sequence[str]) -> int:
        """Remove documents and the blocks that no other one shares; returns how many there were."""
        given = list(dict.fromkeys(documents))
        with self._writing(alone=True):
            heads = self.store.heads(given)
            removed = self.store.delete(given)
            self._drop_blocks(key for head in heads.values() for key in head.block_keys)
        return removed

    def compact(self) -> None:
        """Fewer files, no old versions, indices as the size calls for them."""
        with self._writing(alone=True):
            self.store.optimize()

    def gc(self, *, min_age_s: float = MIN_AGE_S) -> GcReport:
        """Remove blocks that no row needs and that are older than ``min_age_s``, and what crashes left behind."""
        with self._writing(alone=True):
            dropped = self._drop_other_generations()
            changed = _times_of(self.blocks)
            num_bytes = count = 0
            for key in changed.keys() - self.store.referenced(changed):
                if time.time() - changed[key] < min_age_s:
                    continue
                size = self.blocks.size_of(key)
                if self.blocks.delete(key):
                    num_bytes += size
                    count += 1
            return GcReport(count, num_bytes, self.blocks.sweep_temporary(), dropped)

    # -- another model -------------------------------------------------------------------------------------------

    def begin_generation(self, manifest: Manifest) -> KnowledgeBase:
        """An empty knowledge base beside this one, for another model's rows; :meth:`switch_to` puts it in its place.

        Until then, or until it is closed, nobody else can write; readers go on with what there is. Closed without a
        switch it leaves nothing.
        """
        with contextlib.ExitStack() as held:
            held.enter_context(self._writing(alone=True))
            self._drop_other_generations()
            following = dataclasses.replace(manifest, generation=self.manifest.generation + 1)
            new = KnowledgeBase(self._place, following, max_block_bytes=None, wait_s=self._wait_s)
            new.blocks = self.blocks
            new._held = held.pop_all()
        return new

    def switch_to(self, new: KnowledgeBase) -> None:
        """Put a generation in this one's place, at once; the old rows and their blocks are dropped.

        Raises:
            StoreError: when it does not hold as many documents: nothing is changed then.
        """
        assert new._held is not None, "made by begin_generation and not yet switched to"
        have, wanted = new.store.size().documents, self.store.size().documents
        if have != wanted:
            raise StoreError(f"{self.where} has {wanted} documents and only {have} were indexed again: nothing changed")
        with new._held:
            self._place.replace(new.manifest)
            old, self.store, self.manifest, new._held = self.store, new.store, new.manifest, None
            old.close()
            self._drop_other_generations()
            self._drop_blocks(self.blocks.keys())

    # -- looking at it -------------------------------------------------------------------------------------------

    def check_current(self) -> None:
        """Raises StoreError when the knowledge base was indexed with another model since it was opened."""
        if self._held is not None:
            return
        stored = self._place.read()
        if stored is None:
            raise StoreError(f"the knowledge base {self.where} is gone")
        if stored != self.manifest:
            raise StoreError(f"{self.where} was indexed again since it was opened: open it again")

    def stats(self) -> Stats:
        size = self.store.size()
        sizes = [self.blocks.size_of(key) for key in self.blocks.keys()]  # noqa: SIM118 - a store, not a dict
        store_bytes = self._place.num_bytes()
        return Stats(
            documents=size.documents,
            chunks=size.chunks,
            blocks=len(sizes),
            bytes=store_bytes + sum(sizes),
            store_bytes=store_bytes,
            block_bytes=sum(sizes),
            model=self.manifest.fingerprint,
            dim=self.manifest.dim,
            prompt_format=self.manifest.prompt_format,
            codec=self.manifest.codec,
            chunk_tokens=self.manifest.chunk_tokens,
            chunk_overlap=self.manifest.chunk_overlap,
            format_version=FORMAT_VERSION,
            generation=self.manifest.generation,
        )

    def verify(self, recompute: Callable[[list[Row]], list[Block]] | None = None) -> VerifyReport:
        """Read every row and every block, and set right what can be.

        A block that is not whole is removed, which sets it right: it is computed again when it is needed, or now when
        ``recompute`` makes blocks of rows. Rows that are damaged are listed and left.
        """
        report = VerifyReport()
        self._verify_blocks(report)

        def damaged(row: Row) -> None:
            report.damaged.append(f"document {row.document!r:.100}, chunk {row.number}: its bytes have changed")

        try:
            for rows in by_document(_readable(self.store.scan(damaged=damaged))):
                report.documents += 1
                report.chunks += len(rows)
                report.damaged += faults(rows, self.manifest)
                lost = [row for row in rows if row.block_key and not self.blocks.contains(row.block_key)]
                if lost and recompute is not None:
                    self.blocks.put_many(recompute(lost))
                    report.repaired += [f"the key-values of {row.id!r:.100} were computed again" for row in lost]
                else:
                    report.missing += len(lost)
        except _UnreadableError as error:
            report.damaged.append(f"rows cannot be read: {error}")
        return report

    def export(self, path: str | os.PathLike[str], *, with_blocks: bool = False) -> None:
        """Write everything into one file, as of one moment; without the blocks, which can be computed again."""
        get = self.blocks.get if with_blocks else None
        write_archive(resolve(path), self.manifest, by_document(self.store.scan()), get)

    @classmethod
    def import_(cls, archive: str | os.PathLike[str], where: str | os.PathLike[str]) -> KnowledgeBase:
        """A new knowledge base from an exported file: whole, or not made.

        Raises:
            StoreError: for a file that is no export or a damaged one, and a place that is not empty.
        """
        place = place_of(where)
        if place.read() is not None:
            raise StoreError(f"{place.name} is a knowledge base already: import into a new place")
        import_archive(resolve(archive), place)
        return cls.open(where)

    # -- inside --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _writing(self, *, alone: bool = False, wait_s: float | None = None) -> Iterator[None]:
        if self._held is not None:
            yield
            return
        with self._place.writing(alone=alone, wait_s=self._wait_s if wait_s is None else wait_s):
            self.check_current()
            yield

    def _drop_blocks(self, keys: Iterable[str]) -> None:
        """Delete those that no row needs; only while nobody else writes."""
        unused = set(keys) - {""}
        self.blocks.delete_many(unused - self.store.referenced(sorted(unused)))

    def _drop_other_generations(self) -> list[int]:
        """Old ones, and what an interrupted re-indexing left; only while nobody else writes."""
        dropped = [one for one in self._place.generations() if one != self.manifest.generation]
        for generation in dropped:
            self._place.drop_generation(generation)
        return dropped

    def _verify_blocks(self, report: VerifyReport) -> None:
        for key in list(self.blocks.keys()):
            report.blocks += 1
            reason = self.blocks.verify(key)
            if reason is None or not self.blocks.contains(key):  # another process may have removed it meanwhile
                continue
            try:
                self.blocks.delete(key)
                report.repaired.append(f"block {key[:12]} was removed, to be computed again: {reason}")
            except StoreError as error:
                report.damaged.append(f"block {key[:12]}: {reason}; {error}")


class _UnreadableError(Exception):
    """Why a store's rows cannot be read on."""


def _readable(batches: Iterator[list[Row]]) -> Iterator[list[Row]]:
    """Raises _UnreadableError for whatever reading raises."""
    try:
        yield from batches
    except Exception as error:  # what LanceDB raises for bytes that it cannot decode has no common class
        raise _UnreadableError((str(error).strip().splitlines() or [type(error).__name__])[0][:300]) from error


def _times_of(blocks: BlockStore) -> dict[str, float]:
    """When each block was written or last used. Its file has its name, whatever comes behind a dot."""
    times = dict.fromkeys(blocks.keys(), time.time())
    for parent, _, names in os.walk(blocks.folder):
        for name in names:
            key = name.partition(".")[0]
            if key in times:
                with contextlib.suppress(FileNotFoundError):
                    times[key] = os.stat(os.path.join(parent, name)).st_mtime
    return times
