from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gritkit.errors import StoreError
from gritkit.rag.base import KnowledgeBase
from gritkit.rag.lance import LanceStore
from gritkit.rag.sealed import SealedStore
from gritkit.rag.store import Row
from tests.rag.rows import DIM, MANIFEST, document, unit

pytest.importorskip("lancedb")
pytest.importorskip("xxhash")


@pytest.fixture
def inner(tmp_path: Path) -> Iterator[LanceStore]:
    store = LanceStore(tmp_path / "kb", DIM)
    yield store
    store.close()


def changed(inner: LanceStore, name: str, **values: Any) -> None:
    """The first row of a document is another in the database than it went in."""
    first, *others = inner.get([name])[name]
    inner.replace([dataclasses.replace(first, **values), *others])


def test_rows_come_out_as_they_went_in(inner: LanceStore) -> None:
    store = SealedStore(inner)
    rows, _ = document("a", 3)
    rows = [dataclasses.replace(row, digest="with~separator~", text="ü\n\U0001f600") for row in rows]
    store.replace(rows)
    assert store.heads(["a", "b"])["a"].digest == "with~separator~"
    found = [store.get(["a"])["a"], next(iter(store.scan()))]
    for some in found:
        for before, after in zip(rows, some, strict=True):
            assert before.vector is not None
            assert np.array_equal(before.vector, after.vector)  # type: ignore[arg-type]
            assert dataclasses.replace(before, vector=None).__dict__ == dataclasses.replace(after, vector=None).__dict__
    store.optimize()
    (hit, _), *_ = store.nearest(rows[0].vector, 1)  # type: ignore[arg-type]
    assert hit.digest == "with~separator~"
    assert store.delete(["a"]) == 1
    assert store.size().chunks == 0


@pytest.mark.parametrize(
    "values",
    [
        {"text": "another text"},
        {"metadata": '{"a": 2}'},
        {"tags": ()},
        {"digest": "cut"},
        {"token_ids": (9, 9)},
        {"block_key": "0" * 64},
        {"fingerprint": "model-0ne"},
        {"count": 3},
        {"vector": np.nextafter(unit(1), 2, dtype=np.float32)},
    ],
)
def test_a_changed_row_is_noticed(inner: LanceStore, values: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    store = SealedStore(inner)
    rows, _ = document("a", 2)
    store.replace(rows)
    changed(inner, "a", **values)
    with pytest.raises(StoreError, match="document 'a' is damaged in the store: delete it and index it again"):
        store.get(["a"])
    with pytest.raises(StoreError, match="is damaged"):
        list(store.scan())
    damaged: list[Row] = []
    assert [row.id for some in store.scan(damaged=damaged.append) for row in some] == ["a#1"]
    assert [row.id for row in damaged] == ["a#0"]
    if "vector" in values:
        return  # search results may come without theirs
    with caplog.at_level(logging.WARNING, "gritkit"):
        assert [row.id for row, _ in store.nearest(unit(3), 5)] == ["a#1"]
    assert "document 'a' is damaged in the store and left out" in caplog.text


def test_texts_do_not_run_into_each_other(inner: LanceStore) -> None:
    store = SealedStore(inner)
    row = document("a", 1)[0][0]
    others = [
        dataclasses.replace(row, text=row.text + row.metadata, metadata=""),
        dataclasses.replace(row, tags=(row.tags[0][:3], row.tags[0][3:])),
        dataclasses.replace(row, token_ids=(*row.token_ids, 0)),
    ]
    assert len({store._of_text(one) for one in [row, *others]}) == 4


def test_flipped_bits_on_the_disk_are_all_found(tmp_path: Path) -> None:
    """Each is either listed by verify or changes nothing that is read; LanceDB alone reads about 4 of 10 silently."""
    where = tmp_path / "kb"
    with KnowledgeBase.open(where, manifest=MANIFEST) as base:
        rows = [row for number in range(40) for row in document(f"d{number}", 2)[0]]
        base.replace(rows)
    (path,) = (where / "documents_0.lance" / "data").glob("*.lance")
    good, rng = path.read_bytes(), random.Random(0)
    texts = {row.id: (row.text, row.vector.tobytes()) for row in rows}  # type: ignore[union-attr]
    found = 0
    for _ in range(25):
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        with KnowledgeBase.open(where) as base:
            if base.verify().damaged:
                found += 1
            else:
                got = {row.id: (row.text, row.vector.tobytes()) for some in base.store.scan() for row in some}  # type: ignore[union-attr]
                assert got == texts
    assert found > 15
