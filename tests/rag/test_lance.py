from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gritkit.errors import StoreError
from gritkit.rag import lance, lance_table
from gritkit.rag.lance import LanceStore
from gritkit.rag.store import Row
from tests.rag.test_stores import DIM, clustered, ids, numbered, rows, unit


@pytest.fixture
def store(tmp_path: Path) -> LanceStore:
    return LanceStore(tmp_path / "kb", DIM)


def scored(found: list[tuple[Row, float]]) -> list[tuple[str, float]]:
    return [(row.id, score) for row, score in found]


def test_importing_the_stores_imports_no_torch() -> None:
    code = (
        "import sys; import gritkit.rag.lance, gritkit.rag.postgres, gritkit.rag.store; "
        "assert 'torch' not in sys.modules; assert 'lancedb' not in sys.modules; assert 'psycopg' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_replace_is_one_version(store: LanceStore) -> None:
    store.replace(rows("a", "one", "two", "three") + rows("b"))
    before = store._table.version
    store.replace(rows("a", "one", version=1) + rows("c", "new", "new"))  # updates, inserts and deletes
    assert store._table.version == before + 1
    assert store.size().chunks == 4


def test_what_versions_leave_in_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LanceDB keeps the metadata of every version that was read until its cache is full."""
    import lancedb

    monkeypatch.setattr(lance_table, "_METADATA_CACHE_BYTES", 64 << 10)
    sessions = []
    made = lancedb.Session
    monkeypatch.setattr(lancedb, "Session", lambda **bounds: sessions.append(made(**bounds)) or sessions[-1])
    store = LanceStore(tmp_path, DIM)
    for number in range(40):
        store.replace(rows(f"d{number}", "one"))
        assert store.size().documents == number + 1
    (session,) = sessions
    assert session.size_bytes < 1 << 20  # with the indices; without the bound 3.5 MiB


def test_a_uri_is_opened_as_one(tmp_path: Path) -> None:
    where = f"file-object-store://{tmp_path}/kb"
    store = LanceStore(where, DIM)
    store.replace(rows("a", "one", "two"))
    store.optimize()
    assert ids(LanceStore(where, DIM).matching("two", 1)) == ["a#1"]
    assert LanceStore.generations(where) == [0]


def test_asking_for_generations_makes_no_folder(tmp_path: Path) -> None:
    assert LanceStore.generations(tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


def test_the_matrix_and_lancedb_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = clustered(500, DIM)
    store = LanceStore(tmp_path, DIM)
    store.replace(numbered(vectors, tags=lambda one: (f"m{one % 4}",)))
    queries = clustered(10, DIM, seed=4)
    in_memory = [scored(store.nearest(query, 9, tags)) for query in queries for tags in ((), ("m2",))]
    monkeypatch.setattr(lance, "_MATRIX_BYTES", 0)
    plain = LanceStore(tmp_path, DIM, exact_bytes=1)
    assert plain._search_plan()[1:] == (None, False)
    flat = [scored(plain.nearest(query, 9, tags)) for query in queries for tags in ((), ("m2",))]
    assert flat == in_memory  # to the last bit of the score


def test_ties_at_the_end_go_by_id_without_the_matrix_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lance, "_MATRIX_BYTES", 0)
    store = LanceStore(tmp_path, DIM, exact_bytes=1)
    store.replace(numbered(np.stack([unit(1, 2)] * 300))[::-1])
    assert ids(store.nearest(unit(1, 2), 3)) == ["d00000#0", "d00001#0", "d00002#0"]


def test_small_files_are_compacted_as_they_gather(store: LanceStore) -> None:
    for number in range(40):
        store.replace(rows(f"d{number}"))
    assert store._table.stats()["fragment_stats"]["num_fragments"] < 34
    assert store.size().documents == 40


def test_a_scan_outlives_the_cleaning_of_old_versions(store: LanceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import timedelta

    monkeypatch.setattr(lance, "_KEPT", timedelta(microseconds=1000))
    store.replace([row for number in range(9) for row in rows(f"d{number}")])
    scan = store.scan(batch_size=2)
    next(scan)
    for number in range(9):
        store.delete([f"d{number}"])
    store.optimize()
    assert store.size().documents == 0
    assert sum(map(len, scan)) == 7
    assert store._table.tags.list() == {}


def test_a_scan_may_be_dropped_on_any_thread(store: LanceStore) -> None:
    """Also on that of LanceDB's event loop, where garbage is collected as anywhere."""
    from lancedb.background_loop import LOOP

    store.replace([row for number in range(5) for row in rows(f"d{number}")])
    scans = [store.scan(batch_size=2)]
    next(scans[0])

    async def drop() -> None:
        scans.clear()

    asyncio.run_coroutine_threadsafe(drop(), LOOP.loop).result(timeout=60)
    assert sum(map(len, store.scan())) == 5


def test_what_a_killed_scan_held_is_let_go_after_a_day(store: LanceStore) -> None:
    now = int(time.time())
    store.replace(rows("a"))
    for name in (f"scan-{now - 100_000}-killed", f"scan-{now}-running", "mine"):
        store._table.tags.create(name, store._table.version)
    store.optimize()
    assert sorted(store._table.tags.list()) == ["mine", f"scan-{now}-running"]


def test_a_scan_that_ends_while_tags_are_listed_is_no_failure(
    store: LanceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LanceDB lists their files, then reads each: one may be gone by then."""
    store.replace(rows("a"))
    store._table.tags.create("scan-1-other", store._table.version)
    (tag,) = (Path(store._where) / f"{store._table.name}.lance" / "_refs" / "tags").iterdir()
    tags = type(store._table.tags)
    lists, listed = tags.list, []

    def lists_late(self: Any) -> Any:
        listed.append(1)
        if len(listed) == 1:
            raise RuntimeError(f"lance error: Not found: {str(tag)[1:]}, local.rs:273:40")  # as it says it
        return lists(self)

    monkeypatch.setattr(tags, "list", lists_late)
    store.optimize()
    assert len(listed) == 2
    assert lists(store._table.tags) == {}  # a day is over for that one


def test_a_file_in_the_way_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"cannot open the knowledge base in .*file") as caught:
        LanceStore(tmp_path / "file", DIM)
    assert "\n" not in str(caught.value)


def test_a_damaged_table_is_an_error(tmp_path: Path) -> None:
    LanceStore(tmp_path, DIM).replace(rows("a"))
    for file in (tmp_path / "documents_0.lance" / "data").iterdir():
        file.write_bytes(b"nonsense")
    with pytest.raises(StoreError, match="cannot read"):
        LanceStore(tmp_path, DIM).get(["a"])


def test_the_index_grows_and_is_measured_again(tmp_path: Path) -> None:
    from gritkit.rag.lance_index import read_setting

    store = LanceStore(tmp_path, 16, exact_bytes=1)
    vectors = clustered(2000, 16)
    store.replace(numbered(vectors[:600]))
    store.optimize()
    first = read_setting(store._table)
    assert first is not None
    store.replace(numbered(vectors[600:700], first=600))
    store.optimize()
    assert read_setting(store._table) == first  # a sixth more is no reason
    store.replace(numbered(vectors[700:1000], first=700))
    store.optimize()
    second = read_setting(store._table)
    assert second is not None
    assert (second.rows, second.tuned_rows) == (600, 1000)
    store.replace(numbered(vectors[1000:], first=1000))
    store.optimize()
    third = read_setting(store._table)
    assert third is not None
    assert (third.rows, third.tuned_rows) == (2000, 2000)
    query = clustered(1, 16, seed=6)[0]
    assert len(set(ids(store.nearest(query, 10))) & {f"d{one:05}#0" for one in np.argsort(-(vectors @ query))[:10]}) > 8
