from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gritkit.errors import StoreError
from gritkit.kv.blocks import Block
from gritkit.rag.base import KnowledgeBase
from gritkit.rag.manifest import FILE_NAME, FORMAT_VERSION
from gritkit.rag.store import Row
from tests.rag.rows import DIM, MANIFEST, block, document, unit

pytest.importorskip("lancedb")
pytest.importorskip("xxhash")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kb"


@pytest.fixture
def base(folder: Path) -> Iterator[KnowledgeBase]:
    with KnowledgeBase.open(folder, manifest=MANIFEST) as opened:
        yield opened


def content(base: KnowledgeBase) -> dict[str, list[str]]:
    return {rows[0].document: [row.text for row in rows] for rows in _documents(base)}


def _documents(base: KnowledgeBase) -> list[list[Row]]:
    found: dict[str, list[Row]] = {}
    for rows in base.store.scan():
        for row in rows:
            found.setdefault(row.document, []).append(row)
    return list(found.values())


def keys(base: KnowledgeBase) -> set[str]:
    return set(base.blocks.keys())


def block_file(base: KnowledgeBase, key: str) -> Path:
    (path,) = base.blocks.folder.rglob(f"{key}*")
    return path


# -- opening -----------------------------------------------------------------------------------------------------------


def test_it_imports_no_torch() -> None:
    code = "import sys, gritkit.rag.base, gritkit.cli.kb; sys.exit('torch' in sys.modules or 'lancedb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_was_written_is_there_after_opening_again(folder: Path) -> None:
    rows, blocks = document("a", 3)
    with KnowledgeBase.open(folder, manifest=MANIFEST) as base:
        base.replace(rows, blocks)
    with KnowledgeBase.open(folder) as again:
        assert again.manifest == MANIFEST
        assert content(again) == {"a": [row.text for row in rows]}
        assert all(again.blocks.get(one.key) is not None for one in blocks)
        assert again.stats().documents == 1


def test_how_documents_are_cut_is_the_stored_one(folder: Path, base: KnowledgeBase) -> None:
    with KnowledgeBase.open(folder, manifest=dataclasses.replace(MANIFEST, chunk_tokens=7)) as again:
        assert again.manifest.chunk_tokens == MANIFEST.chunk_tokens
    with pytest.raises(StoreError, match=r"another model .*: open it .* gritkit kb reindex"):
        KnowledgeBase.open(folder, manifest=dataclasses.replace(MANIFEST, fingerprint="model-two"))


def test_none_is_made_without_a_manifest(folder: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no knowledge base at .*: make one with: gritkit index"):
        KnowledgeBase.open(folder)
    assert not folder.exists()


def test_a_folder_of_something_else_stays_as_it_is(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    for where in (folder, folder / "thesis.txt"):
        with pytest.raises(StoreError, match=r"is not empty and holds no knowledge base|cannot open"):
            KnowledgeBase.open(where, manifest=MANIFEST)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_formats_of_before_and_damaged_manifests_are_refused(folder: Path, base: KnowledgeBase) -> None:
    path = folder / FILE_NAME
    path.write_text(path.read_text().replace(f'"format_version": {FORMAT_VERSION}', '"format_version": 1'))
    with pytest.raises(StoreError, match=r"format 1 and this gritkit reads 2: index the documents again"):
        KnowledgeBase.open(folder, manifest=MANIFEST)
    path.write_text("{")
    with pytest.raises(StoreError, match="is damaged"):
        KnowledgeBase.open(folder)


def test_one_that_was_being_made_when_its_maker_died_is_made(folder: Path) -> None:
    KnowledgeBase.open(folder, manifest=MANIFEST).close()
    for path in (folder / "documents_0.lance" / "_versions").iterdir():
        path.unlink()  # LanceDB makes the folder first and its first version last
    with KnowledgeBase.open(folder, manifest=MANIFEST) as base:
        base.replace(*document("a", 2))
        assert base.store.matching("chunk", 5)
        assert base.verify().damaged == []


def test_two_who_make_it_at_once_make_one(folder: Path) -> None:
    found: list[Any] = []

    def make(number: int) -> None:
        with KnowledgeBase.open(folder, manifest=dataclasses.replace(MANIFEST, chunk_tokens=number)) as base:
            base.replace(*document(f"d{number}"))
            found.append(base.manifest)

    threads = [threading.Thread(target=make, args=[number]) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    with KnowledgeBase.open(folder) as base:
        assert base.store.size().documents == 4


# -- changing ----------------------------------------------------------------------------------------------------------


def test_replacing_and_deleting_drop_the_blocks_that_nobody_needs(base: KnowledgeBase) -> None:
    shared = block("shared")
    base.replace(*document("a", 3))
    base.replace(*document("b", 1, blocks=[shared]))
    base.replace(*document("c", 1, blocks=[shared]))
    new, blocks = document("a", 2, version=1)
    base.replace(new, blocks)
    assert content(base)["a"] == [row.text for row in new]
    assert keys(base) == {one.key for one in [*blocks, shared]}
    assert base.delete(["b", "b", "unknown"]) == 1
    assert shared.key in keys(base)
    assert base.delete(["c", "a"]) == 2
    assert (keys(base), base.store.size().chunks) == (set(), 0)


def test_blocks_are_there_before_the_rows(base: KnowledgeBase, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, blocks = document("a", 2)
    seen = []

    def refuse(rows: object) -> None:
        seen.extend(base.blocks.get_many([one.key for one in blocks]))
        raise StoreError("no room for rows")

    monkeypatch.setattr(base.store, "replace", refuse)
    with pytest.raises(StoreError, match="no room for rows"):
        base.replace(rows, blocks)
    assert None not in seen
    assert len(seen) == 2
    assert base.store.size().documents == 0


def test_when_blocks_cannot_be_kept_no_row_is(base: KnowledgeBase, folder: Path) -> None:
    base.replace(*document("a"))
    os.rename(folder / "blocks", folder / "away")
    (folder / "blocks").write_text("in the way")
    with pytest.raises(StoreError, match="cannot write a block to"):
        base.replace(*document("b"))
    assert set(content(base)) == {"a"}


def test_rows_of_another_model_are_refused(base: KnowledgeBase) -> None:
    with pytest.raises(StoreError, match="document 'a' was read by another model"):
        base.replace(*document("a", fingerprint="model-two"))
    assert keys(base) == set()


def test_whoever_is_at_work_alone_holds_the_others_up(folder: Path, base: KnowledgeBase) -> None:
    with KnowledgeBase.open(folder, wait_s=0.02) as other, base._place.writing(alone=True, wait_s=0):
        for change in (
            lambda: other.replace(*document("a")),
            lambda: other.delete(["a"]),
            other.compact,
            other.gc,
            lambda: other.begin_generation(MANIFEST),
        ):
            with pytest.raises(StoreError, match=r"is in use: .*process.* more than 0.02 s"):
                change()
        assert other.store.size().documents == 0  # reading goes on
        assert other.verify().damaged == []


def test_with_another_writer_at_work_old_blocks_are_left_to_gc(
    folder: Path, base: KnowledgeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gritkit.rag.base._PATIENCE_S", 0.0)
    base.replace(*document("a", 2))
    rows, blocks = document("a", 1, version=1)
    with base._place.writing(alone=False, wait_s=0):
        base.replace(rows, blocks)
    assert len(keys(base)) == 3
    assert base.gc(min_age_s=0).blocks == 2
    assert keys(base) == {blocks[0].key}


WRITE = """
import sys
from gritkit.rag.base import KnowledgeBase
from tests.rag.rows import MANIFEST, document
with KnowledgeBase.open(sys.argv[1], manifest=MANIFEST) as base:
    print("ready", flush=True)
    sys.stdin.read()
    for number in range(12):
        base.replace(*document(f"{sys.argv[2]}{number % 6}", 1 + number % 3, version=number))
    base.replace(*document("both", 2))
    base.delete([f"{sys.argv[2]}5"])
"""


def test_two_processes_that_write_at_once_lose_nothing(folder: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE, folder, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in "ab"
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    with KnowledgeBase.open(folder) as base:
        want = {f"{name}{number}": document(f"{name}{number}", 1 + number % 3, version=6 + number)[0]
                for name in "ab" for number in range(5)} | {"both": document("both", 2)[0]}  # fmt: skip
        assert content(base) == {name: [row.text for row in rows] for name, rows in want.items()}
        report = base.verify()
        assert (report.damaged, report.repaired, report.missing) == ([], [], 0)
        base.gc(min_age_s=0)
        assert keys(base) == {row.block_key for rows in want.values() for row in rows}


# -- cleaning up -------------------------------------------------------------------------------------------------------


def test_gc_removes_what_nobody_needs_and_is_old(base: KnowledgeBase, folder: Path) -> None:
    rows, blocks = document("a", 2)
    base.replace(rows, blocks)
    orphans = [block("old"), block("young")]
    base.blocks.put_many(orphans)
    old = time.time() - 7200
    os.utime(block_file(base, orphans[0].key), (old, old))
    for one in blocks:
        os.utime(block_file(base, one.key), (old, old))
    left = block_file(base, orphans[0].key).with_name(".left.tmp")
    left.write_bytes(b"half")
    os.utime(left, (old, old))
    size = base.blocks.size_of(orphans[0].key)
    report = base.gc()
    assert (report.blocks, report.bytes, report.temporary_files, report.generations) == (1, size, 1, [])
    assert keys(base) == {one.key for one in [*blocks, orphans[1]]}
    assert base.gc(min_age_s=0).blocks == 1


def test_compacting_changes_nothing_that_is_read(base: KnowledgeBase) -> None:
    for number in range(6):
        base.replace(*document(f"d{number}"))
    before = content(base)
    base.compact()
    assert content(base) == before
    assert base.store.nearest(unit(1), 3)


def test_stats_add_up(base: KnowledgeBase, folder: Path) -> None:
    base.replace(*document("a", 2))
    base.replace(*document("b", 3))
    stats = base.stats()
    assert (stats.documents, stats.chunks, stats.blocks) == (2, 5, 5)
    assert stats.block_bytes == base.blocks.num_bytes > 0
    assert stats.bytes == stats.store_bytes + stats.block_bytes
    assert stats.bytes == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert (stats.model, stats.dim, stats.format_version) == ("model-one", DIM, FORMAT_VERSION)


# -- verifying ---------------------------------------------------------------------------------------------------------


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("harm", [_flip, _cut, lambda path: path.write_bytes(b"")])
def test_a_damaged_block_is_removed_and_that_sets_it_right(base: KnowledgeBase, harm: Any) -> None:
    rows, blocks = document("a", 2)
    base.replace(rows, blocks)
    assert base.verify() == type(base.verify())(documents=1, chunks=2, blocks=2)
    harm(block_file(base, blocks[1].key))
    report = base.verify()
    assert (report.blocks, report.missing, report.damaged) == (2, 1, [])
    assert report.repaired[0].startswith(f"block {blocks[1].key[:12]} was removed")
    assert keys(base) == {blocks[0].key}
    assert base.verify().repaired == []


def test_what_is_lost_is_computed_again_by_whoever_can(base: KnowledgeBase) -> None:
    rows, blocks = document("a", 3)
    base.replace(rows, blocks)
    _flip(block_file(base, blocks[0].key))
    base.blocks.delete(blocks[2].key)
    made = {one.key: one for one in blocks}
    asked: list[str] = []

    def recompute(lost: list[Row]) -> list[Block]:
        asked.extend(row.id for row in lost)
        return [made[row.block_key] for row in lost]

    report = base.verify(recompute)
    assert asked == ["a#0", "a#2"]
    assert (report.missing, report.damaged, len(report.repaired)) == (0, [], 3)
    assert keys(base) == set(made)


def test_damaged_rows_are_listed_and_left(base: KnowledgeBase) -> None:
    rows, _ = document("a", 3)
    base.replace(*document("b"))
    bad = dataclasses.replace(rows[1], vector=np.full(DIM, 0.5, np.float32))
    base.store.replace([rows[0], bad])  # past the checks
    report = base.verify()
    assert report.damaged == [
        "document 'a': has chunks [0, 1] of 3",
        "document 'a', chunk 1: its vector has length 1.414 instead of 1",
    ]
    assert report.documents == 2


def test_a_store_that_cannot_be_read_is_damage(base: KnowledgeBase, folder: Path) -> None:
    base.replace(*document("a"))
    for path in (folder / "documents_0.lance" / "data").iterdir():
        path.write_bytes(path.read_bytes()[:20])
    (line,) = base.verify().damaged
    assert line.startswith("rows cannot be read: cannot read the knowledge base")


# -- another model -----------------------------------------------------------------------------------------------------

OTHER = dataclasses.replace(MANIFEST, fingerprint="model-two", dim=DIM)


def _indexed_again(base: KnowledgeBase, new: KnowledgeBase) -> None:
    for rows in _documents(base):
        new.replace([dataclasses.replace(row, fingerprint="model-two", block_key="") for row in rows])


def test_indexing_again_switches_at_once(folder: Path, base: KnowledgeBase) -> None:
    base.replace(*document("a"))
    base.replace(*document("b"))
    kept = block("kept")
    with KnowledgeBase.open(folder, wait_s=0) as reader, KnowledgeBase.open(folder, wait_s=0) as writer:
        new = base.begin_generation(OTHER)
        assert reader.stats().documents == 2  # readers go on
        with pytest.raises(StoreError, match="is in use"):
            writer.replace(*document("c"))
        _indexed_again(base, new)
        rows, _ = document("a", 1, blocks=[kept], fingerprint="model-two")
        new.replace(rows, [kept])
        base.switch_to(new)
        assert (base.manifest.fingerprint, base.manifest.generation) == ("model-two", 1)
        assert keys(base) == {kept.key}
        assert set(content(base)) == {"a", "b"}
        with pytest.raises(StoreError, match="was indexed again since it was opened: open it again"):
            writer.replace(*document("c"))
        with pytest.raises(StoreError, match="was indexed again"):
            reader.check_current()
    with KnowledgeBase.open(folder, manifest=OTHER) as again:
        assert again.stats().documents == 2
        again.replace(*document("c", fingerprint="model-two"))
    assert not (folder / "documents_0.lance").exists()


def test_an_incomplete_one_is_not_switched_to(folder: Path, base: KnowledgeBase) -> None:
    base.replace(*document("a"))
    nothing = "has 1 documents and only 0 were indexed again: nothing changed"
    with base.begin_generation(OTHER) as new, pytest.raises(StoreError, match=nothing):
        base.switch_to(new)
    assert base.verify().damaged == []
    assert [path.name for path in folder.glob("documents_*")] == ["documents_0.lance"]
    base.replace(*document("b"))  # the lock is free


def test_what_an_interrupted_one_left_is_garbage(folder: Path, base: KnowledgeBase) -> None:
    base.replace(*document("a"))
    with base.begin_generation(OTHER) as new:
        _indexed_again(base, new)
        new._place = base._place = _Kept(base._place)  # as if the process had died: nothing is dropped
    base._place = base._place.place
    assert (folder / "documents_1.lance").exists()
    assert base.gc().generations == [1]
    assert not (folder / "documents_1.lance").exists()
    assert set(content(base)) == {"a"}


class _Kept:
    """A place where nothing is dropped."""

    def __init__(self, place: Any) -> None:
        self.place = place

    def drop_generation(self, generation: int) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self.place, name)
