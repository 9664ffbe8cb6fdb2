from __future__ import annotations

import dataclasses
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gritkit.errors import GritkitError, StoreError
from gritkit.rag.archive import Archive, write_archive
from gritkit.rag.base import KnowledgeBase
from gritkit.rag.store import Row
from tests.rag.rows import DIM, MANIFEST, block, document

pytest.importorskip("lancedb")
pytest.importorskip("xxhash")
Entries = dict[str, bytes]


@pytest.fixture
def base(tmp_path: Path) -> Iterator[KnowledgeBase]:
    with KnowledgeBase.open(tmp_path / "kb", manifest=MANIFEST) as opened:
        shared = block("shared")
        opened.replace(*document("a", 3))
        opened.replace(*document("b", 1, blocks=[shared]))
        opened.replace(*document("c", 1, blocks=[shared]))
        yield opened


@pytest.fixture
def archive(base: KnowledgeBase, tmp_path: Path) -> Path:
    base.export(tmp_path / "out" / "kb.zip", with_blocks=True)
    return tmp_path / "out" / "kb.zip"


def rows_of(base: KnowledgeBase) -> dict[str, tuple[Any, ...]]:
    names = [field.name for field in dataclasses.fields(Row) if field.name != "vector"]
    return {
        row.id: (*(getattr(row, name) for name in names), row.vector.tobytes())  # type: ignore[union-attr]
        for rows in base.store.scan()
        for row in rows
    }


def test_what_comes_back_is_what_went_out(base: KnowledgeBase, archive: Path, tmp_path: Path) -> None:
    with KnowledgeBase.import_(archive, tmp_path / "new") as new:
        assert rows_of(new) == rows_of(base)
        assert new.manifest == base.manifest
        assert set(new.blocks.keys()) == set(base.blocks.keys())
        for key in base.blocks.keys():  # noqa: SIM118
            before, after = base.blocks.get(key), new.blocks.get(key)
            assert before is not None
            assert after is not None
            assert after.fields == before.fields
            assert all(map(np.array_equal, after.arrays, before.arrays))
            assert [array.dtype for array in after.arrays] == [array.dtype for array in before.arrays]
        assert new.verify().damaged == []
        assert new.store.matching("version", 1)  # the indices are there
        new.replace(*document("d"))


def test_blocks_stay_where_they_are_unless_asked_for(base: KnowledgeBase, tmp_path: Path) -> None:
    base.export(tmp_path / "kb.zip")
    with KnowledgeBase.import_(tmp_path / "kb.zip", tmp_path / "new") as new:
        assert rows_of(new) == rows_of(base)
        assert list(new.blocks.keys()) == []
        assert new.verify().missing == 5


def test_many_documents_take_several_files_of_rows(tmp_path: Path) -> None:
    documents = [document(f"d{number}", 2)[0] for number in range(600)]
    write_archive(tmp_path / "kb.zip", MANIFEST, documents, None)
    with Archive(tmp_path / "kb.zip") as found:
        assert found.counts == {"documents": 600, "chunks": 1200, "blocks": 0, "row_files": 3}
        assert [row.id for rows in found.documents() for row in rows] == [row.id for rows in documents for row in rows]


def test_other_tools_read_the_rows(archive: Path) -> None:
    import pyarrow.parquet as pq

    with zipfile.ZipFile(archive) as zipped:
        found = pq.read_table(io.BytesIO(zipped.read("rows/000000.parquet")))
    assert found["document"].to_pylist() == ["a", "a", "a", "b", "c"]


def test_an_empty_knowledge_base_travels_too(tmp_path: Path) -> None:
    with KnowledgeBase.open(tmp_path / "kb", manifest=MANIFEST) as base:
        base.export(tmp_path / "kb.zip", with_blocks=True)
    with KnowledgeBase.import_(tmp_path / "kb.zip", tmp_path / "new") as new:
        assert new.store.size().documents == 0


def test_only_a_new_place_is_filled(base: KnowledgeBase, archive: Path, tmp_path: Path) -> None:
    before = rows_of(base)
    with pytest.raises(StoreError, match="is a knowledge base already: import into a new place"):
        KnowledgeBase.import_(archive, tmp_path / "kb")
    assert rows_of(base) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(StoreError, match="is not empty"):
        KnowledgeBase.import_(archive, tmp_path / "full")
    (tmp_path / "empty").mkdir()
    KnowledgeBase.import_(archive, tmp_path / "empty").close()


def test_a_failed_export_leaves_the_old_file(
    base: KnowledgeBase, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = archive.read_bytes()

    def fail(batch_size: int = 0) -> Iterator[list[Row]]:
        yield document("a")[0]
        raise StoreError("the disk is gone")

    monkeypatch.setattr(base.store, "scan", fail)
    with pytest.raises(StoreError, match="the disk is gone"):
        base.export(archive)
    assert archive.read_bytes() == before
    assert [path.name for path in archive.parent.iterdir()] == ["kb.zip"]
    with pytest.raises(StoreError, match="cannot write"):
        base.export(archive / "below")


# -- files that are not to be trusted ----------------------------------------------------------------------------------


def changed(archive: Path, change: Callable[[Entries], object], **options: Any) -> Path:
    with zipfile.ZipFile(archive) as zipped:
        entries = {name: zipped.read(name) for name in zipped.namelist()}
    change(entries)
    out = archive.with_name("changed.zip")
    with zipfile.ZipFile(out, "w", **options) as zipped:
        for name, data in entries.items():
            zipped.writestr(name, data)
    return out


def head(**values: Any) -> Callable[[Entries], object]:
    def change(entries: Entries) -> None:
        entries["archive.json"] = json.dumps({**json.loads(entries["archive.json"]), **values}).encode()

    return change


def rows(change: Callable[[list[Row]], list[Row]]) -> Callable[[Entries], object]:
    def apply(entries: Entries) -> None:
        from gritkit.rag import archive

        found = archive._from_parquet(entries["rows/000000.parquet"], DIM)
        entries["rows/000000.parquet"] = archive._parquet(change(found), DIM)

    return apply


def table(**changed_columns: Any) -> Callable[[Entries], object]:
    """Rows written by somebody else, with these options and columns."""

    def apply(entries: Entries) -> None:
        import pyarrow.parquet as pq

        found = pq.read_table(io.BytesIO(entries["rows/000000.parquet"]))
        out = io.BytesIO()
        drop = changed_columns.get("drop")
        pq.write_table(found.drop_columns([drop]) if drop else found, out, **changed_columns.get("options", {}))
        entries["rows/000000.parquet"] = out.getvalue()

    return apply


def first_block(change: Callable[[bytes], bytes]) -> Callable[[Entries], object]:
    def apply(entries: Entries) -> None:
        name = min(name for name in entries if name.startswith("blocks/"))
        entries[name] = change(entries[name])

    return apply


def header(**values: Any) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        text = json.dumps({**json.loads(data[8 : 8 + length]), **values}).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return change


def renamed(entries: Entries) -> None:
    names = sorted(name for name in entries if name.startswith("blocks/"))
    entries[names[0]], entries[names[1]] = entries[names[1]], entries[names[0]]


def unnamed(entries: Entries) -> None:
    entries.update({f"blocks/{block('nobody').key}": entries[min(n for n in entries if n.startswith("blocks/"))]})
    head(blocks=json.loads(entries["archive.json"])["blocks"] + 1)(entries)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda entries: entries.pop("archive.json"), "is no exported knowledge base"),
        (lambda entries: entries.update({"archive.json": b"{"}), "its description cannot be read"),
        (lambda entries: entries.update({"archive.json": b" " * (1 << 17)}), "is no exported knowledge base"),
        (head(archive_version=2), "has archive format 2 and this gritkit reads 1"),
        (head(manifest={"format_version": 1}), "has knowledge-base format 1"),
        (head(manifest=[]), "its counts are no numbers"),
        (head(documents="3"), "its counts are no numbers"),
        (head(documents=2), "has 3 documents instead of 2"),
        (head(blocks=99), "not as it says"),
        (lambda entries: entries.pop("rows/000000.parquet"), "not as it says"),
        (lambda entries: entries.update({"../evil": b""}), "has an entry that an export never has"),
        (lambda entries: entries.update({"/etc/passwd": b""}), "has an entry that an export never has"),
        (lambda entries: entries.update({"rows/../x.parquet": b""}), "has an entry that an export never has"),
        (lambda entries: entries.update({"rows/000000.parquet": b"PAR1"}), "cannot be read"),
        (rows(lambda found: found[1:]), "has chunks [1, 2] of 3"),
        (rows(lambda found: [*found, found[0]]), "has chunks [0] of 3|is there twice"),
        (rows(lambda found: [*found[:3], *found[4:]]), "has 2 documents instead of 3"),
        (rows(lambda found: [dataclasses.replace(one, fingerprint="x") for one in found]), "was read by another model"),
        (table(drop="text"), "other columns than an export has"),
        (table(options={"compression": "ZSTD"}), ""),
        (first_block(lambda data: data[:20]), "cannot be read"),
        (first_block(lambda data: b"\xff" * 16), "cannot be read"),
        (first_block(lambda data: data + b"more"), "header and length disagree"),
        (first_block(header(arrays=[{"dtype": "int8", "shape": [1 << 60]}])), "longer than the entry"),
        (first_block(header(arrays=[{"dtype": "object", "shape": [1]}])), "unknown type of numbers"),
        (first_block(header(arrays=[{"dtype": "int8", "shape": [-1, -20]}])), "longer than the entry"),
        (first_block(header(fields=[])), "header and length disagree"),
        (first_block(header(fields={"other": 1})), "holds another block"),
        (renamed, "holds another block"),
        (unnamed, "holds another block|that no document names"),
    ],
)
def test_what_is_not_as_it_was_written_is_refused(
    archive: Path, tmp_path: Path, change: Callable[[Entries], object], reason: str
) -> None:
    out = changed(archive, change)
    before = {path.name for path in tmp_path.iterdir()}
    if not reason:  # harmless
        KnowledgeBase.import_(out, tmp_path / "new").close()
        return
    with pytest.raises(StoreError, match="|".join(re.escape(one) for one in reason.split("|"))) as error:
        KnowledgeBase.import_(out, tmp_path / "new")
    assert "\n" not in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == before


def test_compressed_and_repeated_entries_are_refused(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="has a compressed entry"):
        KnowledgeBase.import_(changed(archive, lambda _: None, compression=zipfile.ZIP_DEFLATED), tmp_path / "new")
    twice = tmp_path / "twice.zip"
    twice.write_bytes(archive.read_bytes())
    with zipfile.ZipFile(twice, "a") as zipped, pytest.warns(UserWarning, match="Duplicate name"):
        zipped.writestr("archive.json", "{}")
    with pytest.raises(StoreError, match="has an entry that an export never has"):
        KnowledgeBase.import_(twice, tmp_path / "new")


def test_rows_that_decode_to_more_than_their_size_are_refused(archive: Path, tmp_path: Path) -> None:
    def bomb(entries: Entries) -> None:
        from gritkit.rag import archive as module

        found = module._from_parquet(entries["rows/000000.parquet"], DIM)
        many = [dataclasses.replace(found[0], number=n, count=2000, text="a" * 10_000) for n in range(2000)]
        entries["rows/000000.parquet"] = module._parquet(many, DIM)
        table(options={"use_dictionary": True, "compression": "ZSTD"})(entries)
        assert len(entries["rows/000000.parquet"]) < 1_000_000

    with pytest.raises(StoreError, match="it decodes to more than its size"):
        KnowledgeBase.import_(changed(archive, bomb), tmp_path / "new")


def test_what_is_no_zip_is_refused(tmp_path: Path) -> None:
    for name, data in {"empty": b"", "text": b"hello" * 100, "cut": b"PK\3\4" + b"\0" * 50}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(StoreError, match="is no exported knowledge base"):
            KnowledgeBase.import_(tmp_path / name, tmp_path / "new")
    with pytest.raises(StoreError, match="cannot read"):
        KnowledgeBase.import_(tmp_path / "missing", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_harmed_bytes_are_an_error_or_change_nothing(archive: Path, data: st.DataObject) -> None:
    good = archive.read_bytes()
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(bad) - 1))
        how = data.draw(st.sampled_from(["flip", "zero", "cut", "insert"]))
        if how == "flip":
            bad[place] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "zero":
            bad[place : place + 16] = bytes(len(bad[place : place + 16]))
        elif how == "cut" and place:
            del bad[place:]
        else:
            bad[place:place] = data.draw(st.binary(min_size=1, max_size=8))
    path = archive.with_name("harmed.zip")
    path.write_bytes(bad)

    def read(where: Path) -> tuple[Any, Any]:
        with Archive(where) as found:
            texts = [(row.id, row.text, row.vector.tobytes()) for rows in found.documents() for row in rows]  # type: ignore[union-attr]
            return texts, [(one.key, [array.tobytes() for array in one.arrays]) for one in found.blocks()]

    try:
        got = read(path)
    except GritkitError as error:
        got = None
        message = str(error)
    assert "\n" not in message if got is None else got == read(archive)
