"""Every store keeps the same promises: one suite for both."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gritkit.errors import StoreError
from gritkit.rag.lance import LanceStore
from gritkit.rag.postgres import PostgresStore
from gritkit.rag.store import DocumentStore, Head, Listed, Row

DIM = 8
Make = Callable[..., Any]


@pytest.fixture(params=["lance", "postgres"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Opens the same place each time."""
    opened: list[DocumentStore] = []
    if request.param == "lance":
        kind, where = LanceStore, str(tmp_path / "kb")
    else:
        kind, where = PostgresStore, request.getfixturevalue("postgres_url")

    def open_store(dim: int = DIM, **options: Any) -> Any:
        opened.append(kind(where, dim, **options))
        return opened[-1]

    open_store.kind, open_store.where = kind, where  # type: ignore[attr-defined]
    yield open_store
    for store in opened:
        store.close()


def unit(*numbers: float, dim: int = DIM) -> np.ndarray:
    vector = np.zeros(dim, np.float32)
    vector[: len(numbers)] = numbers
    return vector / max(np.linalg.norm(vector), 1e-9)


def rows(document: str, *texts: str, tags: tuple[str, ...] = (), version: int = 0, dim: int = DIM) -> list[Row]:
    made = []
    for number, text in enumerate(texts or ("text",)):
        seed = [version, number, *document.encode()]
        vector = unit(*np.random.default_rng(seed).normal(size=dim), dim=dim)
        made.append(
            Row(document, number, len(texts or ("text",)), text, '{"a":1}', tags, f"{document}:{version}",
                (number, version, 7), f"key-{document}-{version}-{number}", "model", vector)
        )  # fmt: skip
    return made


def ids(found: list[tuple[Row, float]]) -> list[str]:
    return [row.id for row, _ in found]


def same(one: list[Row], other: list[Row]) -> bool:
    bare = [[replace(row, vector=None).__dict__ for row in part] for part in (one, other)]
    vectors = [[None if row.vector is None else row.vector.tolist() for row in part] for part in (one, other)]
    return bare[0] == bare[1] and vectors[0] == vectors[1]


def clustered(num: int, dim: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(40, dim)) * 1.5
    vectors = centres[rng.integers(0, 40, num)] + rng.normal(size=(num, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def numbered(vectors: np.ndarray, first: int = 0, tags: Callable[[int], tuple[str, ...]] = lambda _: ()) -> list[Row]:
    return [
        Row(f"d{first + one:05}", 0, 1, f"number {first + one}", "{}", tags(one), "d", (1,), "", "model", vector)
        for one, vector in enumerate(vectors)
    ]


# -- documents ---------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_in_order_by_everyone(make: Make) -> None:
    store, other = make(), make()
    written = {name: rows(name, "one", "two", "three", tags=("t",)) for name in ("a", "it's; --", "ü#1", "")}
    store.replace([row for part in written.values() for row in reversed(part)])
    found = other.get([*written, "missing", *(f"x{one}" for one in range(1500)), *written])
    assert set(found) == set(written)
    assert all(same(found[name], written[name]) for name in written)
    assert (other.size().documents, other.size().chunks) == (4, 12)
    head = other.heads(["a", "missing"])
    assert head == {"a": Head("a:0", '{"a":1}', "model", ("key-a-0-0", "key-a-0-1", "key-a-0-2"))}


def test_a_document_is_replaced_as_a_whole(make: Make) -> None:
    store, other = make(), make()
    store.replace(rows("a", "one", "two", "three") + rows("b", "stays"))
    assert ids(other.nearest(unit(1), 10))  # what a reader keeps in memory must not outlive the rows
    new = rows("a", "only", version=1)
    store.replace(new)
    assert same(other.get(["a"])["a"], new)
    assert other.size().chunks == 2
    assert sorted(ids(other.nearest(unit(1), 10))) == ["a#0", "b#0"]
    assert ids(other.nearest(new[0].vector, 1)) == ["a#0"]
    assert ids(other.matching("two", 5)) == []


def test_deleting_counts_the_documents_that_were_there(make: Make) -> None:
    store = make()
    store.replace(rows("a", "one", "two") + rows("b") + rows("c"))
    assert store.delete(["a", "b", "missing", "a"]) == 2
    assert store.delete([]) == 0
    assert list(store.get(["a", "b", "c"])) == ["c"]
    assert ids(store.nearest(unit(1), 9)) == ["c#0"]


def test_nothing_is_nothing(make: Make) -> None:
    store = make()
    store.replace([])
    assert (store.size().documents, store.get([]), store.heads(["x"]), store.delete(["x"])) == (0, {}, {}, 0)
    assert (store.nearest(unit(1), 3), store.matching("x", 3), list(store.scan()), store.referenced(["k"])) == (
        [],
        [],
        [],
        set(),
    )
    store.optimize()


def test_blocks_are_needed_as_long_as_a_chunk_names_them(make: Make) -> None:
    store = make()
    store.replace(rows("a", "one", "two") + [replace(row, block_key="") for row in rows("b")])
    keys = ["key-a-0-0", "key-a-0-1", "gone", ""]
    assert store.referenced(iter(keys)) == {"key-a-0-0", "key-a-0-1"}
    store.replace(rows("a", "one", version=1))
    assert store.referenced(keys) == set()


def test_a_scan_gives_whole_documents_of_one_moment(make: Make) -> None:
    store = make()
    written = {f"d{one:02}": rows(f"d{one:02}", *["text"] * (1 + one % 3)) for one in range(20)}
    store.replace([row for part in reversed(written.values()) for row in part])
    scan = store.scan(batch_size=5)
    batches = [next(scan)]
    make().delete(["d19"])
    make().replace(rows("d18", "new", version=1) + rows("d99"))
    store.optimize()
    batches += scan
    assert same([row for batch in batches for row in batch], [row for name in written for row in written[name]])
    assert len(batches) > 4
    assert all(batch[0].number == 0 and batch[-1].number == batch[-1].count - 1 for batch in batches)


def test_documents_are_listed_in_pages(make: Make) -> None:
    store = make()
    names = ["", "a", "a\u00e4", "ab", "it's; --", "B", "z", "\U0001f600", "\uff5e"]
    names += [f"n{one:03}" for one in range(40)]
    assert store.listed(5) == []
    written = [row for name in names for row in rows(name, *["text"] * (1 + len(name) % 3), tags=('["x", 1]',))]
    random.Random(0).shuffle(written)
    for start in range(0, len(written), 30):
        whole = {row.document for row in written[start : start + 30]}
        store.replace([row for row in written if row.document in whole])
    pages, after = [], None
    while page := store.listed(7, after):
        pages.append(page)
        after = page[-1].document
        if len(pages) == 2:  # what comes and goes meanwhile moves nothing
            store.delete([pages[0][1].document])
            store.replace(rows("0", "behind the reader") + rows("zz", "before the reader"))
    assert [one.document for page in pages for one in page] == sorted([*names, "zz"])
    assert {len(page) for page in pages[:-1]} == {7}
    assert pages[0][0] == Listed("", 1, '{"a":1}', ('["x", 1]',))
    assert all(one.chunks == 1 + len(one.document) % 3 for page in pages for one in page if one.document in names)
    assert store.listed(3, "\U0001f600") == []
    assert [one.document for one in store.listed(1, "n03\0")] == ["n030"]


# -- searching ---------------------------------------------------------------------------------------------------------


def test_the_nearest_are_exact_and_filters_come_first(make: Make) -> None:
    store = make()
    vectors = clustered(300, DIM)
    store.replace(numbered(vectors, tags=lambda one: (f"m{one % 3}", f"n{one % 5}", "it's")))
    for query in clustered(5, DIM, seed=7):
        scores = vectors @ query
        for tags, allowed in ((), range(300)), (("m1", "n2", "it's"), range(7, 300, 15)), (("none",), ()):
            best = sorted(allowed, key=lambda one: -scores[one])[:12]
            found = store.nearest(query, 12, tags)
            assert ids(found) == [f"d{one:05}#0" for one in best]
            assert [score for _, score in found] == pytest.approx(scores[list(best)], abs=1e-6)
            assert all(row.vector is None for row, _ in found)


def test_equal_vectors_come_by_id(make: Make) -> None:
    store = make()
    one, other = unit(1, 2, 3), unit(3, 1)
    order = np.random.default_rng(0).permutation(60)
    store.replace(
        [replace(row, document=f"x{number:02}") for row, number in zip(numbered([one] * 60), order, strict=True)]
    )
    store.replace(numbered([other] * 3, first=900))
    found = store.nearest(one, 7)
    assert ids(found) == [f"x{number:02}#0" for number in range(7)]
    assert len({score for _, score in found}) == 1


def test_rows_are_found_as_they_come_and_go(make: Make) -> None:
    """A reader that keeps vectors in memory reads only what is new, and must end up with the same."""
    store, reader = make(), make()
    vectors = clustered(400, DIM, seed=3)
    store.replace(numbered(vectors[:200]))
    query = vectors[350]
    for first in (200, 250, 300, 350):
        store.replace(numbered(vectors[first : first + 50], first=first))
        store.delete([f"d{first - 150:05}"])
        left = [one for one in range(first + 50) if not (one <= first - 150 and (one - 50) % 50 == 0 and one >= 50)]
        best = sorted(left, key=lambda one: -float(vectors[one] @ query))[:5]
        assert ids(reader.nearest(query, 5)) == [f"d{one:05}#0" for one in best]
        store.optimize()
        assert ids(reader.nearest(query, 5)) == [f"d{one:05}#0" for one in best]


def test_the_index_finds_what_an_exact_search_finds(make: Make) -> None:
    dim = 64
    store = make(dim, exact_bytes=1)
    vectors = clustered(3000, dim)
    store.replace(numbered(vectors, tags=lambda one: (f"m{one % 100}", f"n{one % 2}")))
    store.optimize()
    assert uses_index(store)
    reader = make(dim, exact_bytes=1)
    queries = clustered(40, dim, seed=5)
    best = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    hits = [
        len(set(ids(reader.nearest(query, 10))) & {f"d{one:05}#0" for one in true})
        for query, true in zip(queries, best, strict=True)
    ]
    assert np.mean(hits) >= 9.8
    # as many as pass the filter, however few they are
    for tag, step, first in ("m7", 100, 7), ("n1", 2, 1):
        hits = []
        for query in queries[:20]:
            allowed = sorted(range(first, 3000, step), key=lambda one: -float(vectors[one] @ query))
            hits.append(len(set(ids(reader.nearest(query, 10, (tag,)))) & {f"d{one:05}#0" for one in allowed[:10]}))
        assert np.mean(hits) >= 9.8
    # rows that came after the index, and rows that went
    new = unit(*np.random.default_rng(1).normal(size=dim), dim=dim)
    store.replace([replace(row, document="new") for row in numbered([new])])
    assert ids(reader.nearest(new, 1)) == ["new#0"]
    store.delete(["new"])
    assert ids(reader.nearest(new, 1)) != ["new#0"]


def test_an_index_that_is_not_good_enough_is_not_asked(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from gritkit.rag import ranking

    monkeypatch.setattr(ranking, "_MEASURED_RECALL", 1.1)
    store = make(16, exact_bytes=1)
    vectors = clustered(600, 16)
    store.replace(numbered(vectors))
    store.optimize()
    assert store.searched_by().startswith("exact")
    query = clustered(1, 16, seed=8)[0]
    assert ids(store.nearest(query, 20)) == [f"d{one:05}#0" for one in np.argsort(-(vectors @ query))[:20]]


def uses_index(store: DocumentStore) -> bool:
    return store.searched_by().startswith("index") and float(store.searched_by().split()[-1]) >= 0.98


# -- words -------------------------------------------------------------------------------------------------------------


def test_rare_words_count_more_and_short_texts_too(make: Make) -> None:
    store = make()
    store.replace(
        rows("common", "the the the the the")
        + rows("rare", "the zebra of the plains")
        + rows("long", "the zebra " + " ".join(f"word{one}" for one in range(60)), tags=("x",))
        + rows("other", "the other one")
    )
    for _ in "fresh", "indexed":
        found = store.matching("The ZEBRA", 10)
        assert ids(found)[:2] == ["rare#0", "long#0"]
        assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
        assert set(ids(found)[2:]) == {"common#0", "other#0"}
        assert ids(store.matching("zebra", 10, ("x",))) == ["long#0"]
        assert ids(store.matching("zebra", 1)) == ["rare#0"]
        store.optimize()
    store.replace(rows("new", "quagga and zebra"))  # not in the index yet
    assert ids(store.matching("quagga", 5)) == ["new#0"]
    assert "new#0" in ids(store.matching("zebra", 5))


HOSTILE = ["", "  \n", "!!!", '"', "'", "a & | ! b", "foo:* <-> bar", "NOT AND OR (", "\\'; DROP TABLE x; --", "\0",
           "%s {table}", "\ud800", "word " * 5000, "'" * 3000, "text:zebra^2 +x -y"]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_query_is_words_and_nothing_else(make: Make, text: str) -> None:
    store = make()
    store.replace(rows("z", "a zebra word"))
    found = ids(store.matching(text, 3))
    assert found == (["z#0"] if any(word in text for word in ("zebra", "word", "a &")) else [])
    assert ids(store.matching(f"{text[:3000]} zebra", 3)) == ["z#0"]


# -- what can go wrong -------------------------------------------------------------------------------------------------

WRITER = """
import sys
from tests.rag.test_stores import rows
from gritkit.rag.lance import LanceStore
from gritkit.rag.postgres import PostgresStore
kind, where, me = sys.argv[1:]
store = (LanceStore if kind == "LanceStore" else PostgresStore)(where, 8)
print("ready", flush=True)
for turn in sys.stdin:
    store.replace(rows(f"both{turn.strip()}", *[me] * (2 + int(me)), version=int(me)))
    store.replace(rows(f"both{int(turn) // 4}-again", *[me] * (3 - int(me)), version=int(me)))
    store.replace(rows(f"own{me}-{turn.strip()}"))
    if turn.strip() == "3":
        store.optimize()
    print("done", flush=True)
"""
TURNS = 8


def test_two_processes_write_and_nothing_is_lost_or_mixed(make: Make) -> None:
    make().size()
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, make.kind.__name__, make.where, str(me)],  # type: ignore[attr-defined]
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for me in range(2)
    ]

    def everyone(say: str) -> None:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == f"{say}\n"

    everyone("ready")
    for turn in range(TURNS):
        for writer in writers:  # both start each turn together
            assert writer.stdin is not None
            writer.stdin.write(f"{turn}\n")
            writer.stdin.flush()
        everyone("done")
    for writer in writers:
        writer.communicate()
    assert [writer.returncode for writer in writers] == [0, 0]
    store = make()
    shared = [f"both{turn}" for turn in range(TURNS)] + [f"both{turn}-again" for turn in range(TURNS // 4)]
    found = store.get(shared + [f"own{me}-{turn}" for me in range(2) for turn in range(TURNS)])
    assert len(found) == store.size().documents == len(shared) + 2 * TURNS
    for name in shared:
        assert [row.number for row in found[name]] == list(range(found[name][0].count))
        assert len({row.digest for row in found[name]}) == 1


def test_another_length_of_vectors_is_refused(make: Make) -> None:
    make().replace(rows("a"))
    with pytest.raises(StoreError, match="vectors of 8 numbers and the model makes 9"):
        make(9)


def test_a_closed_store_says_so(make: Make) -> None:
    store = make()
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.size()


def test_generations_stand_side_by_side(make: Make) -> None:
    assert make.kind.generations(make.where) == []  # type: ignore[attr-defined]
    make().replace(rows("a"))
    make(16, generation=1).replace(rows("b", dim=16))
    assert make.kind.generations(make.where) == [0, 1]  # type: ignore[attr-defined]
    assert list(make().get(["a", "b"])) == ["a"]
    make.kind.drop_generation(make.where, 0)  # type: ignore[attr-defined]
    make.kind.drop_generation(make.where, 7)  # type: ignore[attr-defined]
    assert make.kind.generations(make.where) == [1]  # type: ignore[attr-defined]
    assert list(make(16, generation=1).get(["a", "b"])) == ["b"]


# -- against a model ---------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "c'", "d#0"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("replace"), st.lists(st.tuples(NAMES, st.integers(1, 3)), min_size=1, max_size=3)),
        st.tuples(st.just("delete"), st.lists(NAMES, max_size=3)),
        st.tuples(st.just("optimize"), st.just([])),
    ),
    max_size=6,
)


def test_any_sequence_of_writes_leaves_what_a_dict_would(make: Make) -> None:
    store = make()
    count = iter(range(10**6))

    @settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(steps=STEPS)
    def check(steps: list[tuple[str, list[Any]]]) -> None:
        model: dict[str, list[Row]] = {}
        store.delete(["a", "b", "c'", "d#0"])
        for step, given_ in steps:
            if step == "replace":
                new = {name: rows(name, *["t"] * num, version=next(count)) for name, num in given_}
                store.replace([row for part in new.values() for row in part])
                model |= new
            elif step == "delete":
                assert store.delete(given_) == sum(model.pop(name, None) is not None for name in given_)
            else:
                store.optimize()
        held = [row for part in model.values() for row in part]
        assert (store.size().documents, store.size().chunks) == (len(model), len(held))
        found = store.get(["a", "b", "c'", "d#0"])
        assert set(found) == set(model)
        assert all(same(found[name], model[name]) for name in model)
        assert {name: head.block_keys for name, head in store.heads(list(model)).items()} == {
            name: tuple(row.block_key for row in part) for name, part in model.items()
        }
        query = unit(1, 2, 3)
        assert ids(store.nearest(query, 4)) == [
            row.id for row in sorted(held, key=lambda row: (-float(np.dot(row.vector, query)), row.id))[:4]
        ]

    check()
