from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from gritkit.errors import InputError, StoreError
from gritkit.rag.base import KnowledgeBase
from gritkit.rag.place import FolderPlace, ObjectPlace, PostgresPlace, place_of
from tests.rag.rows import MANIFEST, document

pytest.importorskip("lancedb")
pytest.importorskip("xxhash")
OTHER = dataclasses.replace(MANIFEST, fingerprint="model-two")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRITKIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def objects(tmp_path: Path) -> str:
    """Object storage that LanceDB offers for tests: every access goes through its object-store layer."""
    return f"file-object-store://{tmp_path}/bucket/kb"


def test_an_address_says_what_is_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = place_of("kb")
    assert isinstance(place, FolderPlace)
    assert (place.name, place.blocks) == (str(tmp_path / "kb"), tmp_path / "kb" / "blocks")
    assert isinstance(place_of("s3://bucket/kb"), ObjectPlace)
    assert isinstance(place_of("postgres://host/db"), PostgresPlace)
    for address in ("http://host/kb", "db://cloud", "file:///kb"):
        with pytest.raises(
            StoreError, match=r":// is no place for a knowledge base: give a local folder, or one of s3"
        ):
            place_of(address)
    with pytest.raises(InputError, match="not a usable path"):
        place_of("")


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://me:secret@host:5432/db", "postgresql://me@host:5432/db"),
        ("postgresql://me:se:c@ret@host/db?sslmode=require", "postgresql://me@host/db?sslmode=require"),
        ("postgresql://host/db?user=me&password=secret&SSLPassword=secret", "postgresql://host/db?user=me"),
        ("postgresql:///db?host=/run/x", "postgresql:///db?host=/run/x"),
    ],
)
def test_passwords_are_not_shown(home: Path, address: str, shown: str) -> None:
    place = place_of(address)
    assert place.name == shown
    assert place.blocks.parent == home / "blocks"
    assert place.blocks == place_of(address.replace("secret", "other")).blocks


def test_a_server_that_is_not_there_is_one_line() -> None:
    with pytest.raises(StoreError, match="cannot open the knowledge base postgresql://me@") as error:
        KnowledgeBase.open("postgresql://me:secret@127.0.0.1:9/db", manifest=MANIFEST)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_object_storage_keeps_rows_there_and_blocks_here(objects: str, home: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no knowledge base at file-object-store://"):
        KnowledgeBase.open(objects)
    with KnowledgeBase.open(objects, manifest=MANIFEST) as base:
        base.replace(*document("a", 2))
        base.replace(*document("b", 1))
        stats = base.stats()
    assert {path.name for path in (tmp_path / "bucket" / "kb").iterdir()} == {"gritkit_kb.lance", "documents_0.lance"}
    assert len(list((home / "blocks").rglob("*.kv"))) == stats.blocks == 3
    assert stats.store_bytes > 0
    with KnowledgeBase.open(objects, manifest=dataclasses.replace(MANIFEST, chunk_tokens=3)) as base:
        assert base.manifest == MANIFEST
        assert base.delete(["a"]) == 1
        base.export(tmp_path / "kb.zip", with_blocks=True)
        new = base.begin_generation(OTHER)
        new.replace(*document("b", 1, fingerprint="model-two"))
        base.switch_to(new)
    with pytest.raises(StoreError, match="another model"):
        KnowledgeBase.open(objects, manifest=MANIFEST)
    with KnowledgeBase.open(objects, manifest=OTHER) as base:
        assert (base.manifest.generation, base.store.size().documents) == (1, 1)
    with KnowledgeBase.import_(tmp_path / "kb.zip", objects + "2") as base:
        assert base.verify().damaged == []
        assert base.stats().documents == base.stats().blocks == 1


def test_one_that_was_being_made_when_its_maker_died_is_made(objects: str, tmp_path: Path) -> None:
    KnowledgeBase.open(objects, manifest=MANIFEST).close()
    for path in (tmp_path / "bucket" / "kb").glob("*.lance/_versions/*"):
        path.unlink()
    with KnowledgeBase.open(objects, manifest=MANIFEST) as base:
        base.replace(*document("a"))
        assert base.verify().damaged == []


def test_tables_of_something_else_stay_as_they_are(objects: str) -> None:
    import lancedb

    lancedb.connect(objects).create_table("mine", [{"x": 1}])
    with pytest.raises(StoreError, match="holds other tables and no knowledge base: name an empty place"):
        KnowledgeBase.open(objects, manifest=MANIFEST)
    assert lancedb.connect(objects).list_tables().tables == ["mine"]


@pytest.mark.parametrize("where", ["folder", "objects"])
def test_an_interrupted_import_does_not_mix_with_what_comes_later(where: str, objects: str, tmp_path: Path) -> None:
    """Rows without a manifest are what a killed import leaves on object storage; in a folder it leaves nothing."""
    address = objects if where == "objects" else str(tmp_path / "kb")
    place = place_of(address)
    if where == "objects":
        with KnowledgeBase(place, MANIFEST, max_block_bytes=None, wait_s=0) as torn:
            torn.store.replace(document("torn")[0])
    with KnowledgeBase.open(address, manifest=MANIFEST) as base:
        assert base.store.size().documents == 0
        assert base.manifest.generation == (1 if where == "objects" else 0)
        base.replace(*document("a"))
        assert base.gc().generations == ([0] if where == "objects" else [])
        assert base.store.size().documents == 1


# -- PostgreSQL --------------------------------------------------------------------------------------------------------


def test_a_server_holds_one(postgres_url: str, home: Path, tmp_path: Path) -> None:
    with (
        KnowledgeBase.open(postgres_url, manifest=MANIFEST) as base,
        KnowledgeBase.open(postgres_url, wait_s=0.02) as other,
    ):
        base.replace(*document("a", 2))
        other.replace(*document("b", 1))
        assert base.stats().documents == other.stats().documents == 2
        assert base.stats().store_bytes > 0
        base.export(tmp_path / "kb.zip")
        with base._place.writing(alone=True, wait_s=0), pytest.raises(StoreError, match="is in use"):
            other.replace(*document("c"))
        new = base.begin_generation(OTHER)
        for name, count in (("a", 2), ("b", 1)):
            new.replace(*document(name, count, fingerprint="model-two"))
        base.switch_to(new)
        assert base.manifest.generation == 1
        with pytest.raises(StoreError, match="indexed again since it was opened"):
            other.replace(*document("c"))
        assert base.verify().damaged == []
    with KnowledgeBase.import_(tmp_path / "kb.zip", tmp_path / "local") as local:
        assert (local.stats().documents, local.manifest.generation) == (2, 0)


def test_writers_of_other_machines_are_held_back_by_the_server(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = place_of(postgres_url)
    monkeypatch.setenv("GRITKIT_HOME", os.environ["GRITKIT_HOME"] + "-elsewhere")
    there = place_of(postgres_url)
    assert here.blocks != there.blocks
    with here.writing(alone=False, wait_s=0), there.writing(alone=False, wait_s=0):
        pass
    with (
        here.writing(alone=True, wait_s=0),
        pytest.raises(StoreError, match=r"is in use: connection \d+ from this machine has held it"),
        there.writing(alone=False, wait_s=0.02),
    ):
        pass
    with there.writing(alone=True, wait_s=0):
        pass
