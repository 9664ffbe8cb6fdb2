from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gritkit.errors import InputError, StoreError
from gritkit.rag import postgres_words
from gritkit.rag.postgres import PostgresStore
from gritkit.rag.ranking import ranked
from tests.rag.test_stores import DIM, clustered, ids, numbered, rows


def test_a_dropped_connection_is_opened_again(postgres_url: str) -> None:
    import psycopg

    store = PostgresStore(postgres_url, DIM)
    store.replace(rows("a"))
    with psycopg.connect(postgres_url, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
                      "AND backend_type = 'client backend'")  # fmt: skip
    store.replace(rows("b"))
    assert store.size().documents == 2
    store.close()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:s3cret@nowhere.invalid:5432/db?connect_timeout=2",
        "postgresql://me:s3cret@127.0.0.1:1/db?connect_timeout=2",
        "postgresql://me:s3cret@127.0.0.1:port/s3cret",
        "postgresql://me:s3cret@127.0.0.1:1/db?nonsense=s3cret",
        "not an address s3cret",
    ],
)
def test_an_address_that_does_not_work_is_an_error_without_the_password(url: str) -> None:
    pytest.importorskip("psycopg", reason="the package psycopg is not installed")
    with pytest.raises(StoreError) as caught:
        PostgresStore(url, DIM)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_character_that_the_server_cannot_hold_is_named(postgres_url: str) -> None:
    store = PostgresStore(postgres_url, DIM)
    with pytest.raises(InputError, match=r"document 'b' holds the character U\+0000"):
        store.replace(rows("a") + rows("b", "one\0two"))
    assert store.size().documents == 0
    store.close()


def test_a_write_that_fails_leaves_all_as_it_was(postgres_url: str) -> None:
    store = PostgresStore(postgres_url, DIM)
    store.replace(rows("a", "one"))
    broken = rows("a", "new", version=1) + rows("z" * 9000)  # longer than a key of the index may be
    broken[-1] = replace(broken[-1], document="".join(map(chr, np.random.default_rng(0).integers(33, 9000, 9000))))
    with pytest.raises(StoreError, match="cannot write"):
        store.replace(broken)
    assert [row.digest for row in store.get(["a"])["a"]] == ["a:0"]
    store.close()


@pytest.mark.parametrize("dim", [2001, 4001])
def test_vectors_too_long_for_the_index_are_found_all_the_same(postgres_url: str, dim: int) -> None:
    vectors = clustered(60, dim)
    store = PostgresStore(postgres_url, dim, exact_bytes=1)
    store.replace(numbered(vectors))
    store.optimize()
    query = clustered(1, dim, seed=2)[0]
    best = [f"d{one:05}#0" for one in np.argsort(-(vectors @ query))[:5]]
    has_index = store._call("read", store._setting) is not None
    assert has_index == (dim <= 4000)  # in half precision, or not at all
    if has_index:  # asked here whether or not it was the faster at so few rows
        by_index = store._call("read", lambda run: store._by_index(run, query, 60, (), 60))
        assert ids(ranked(by_index, query, 5)) == best
    assert ids(store.nearest(query, 5)) == best
    store.close()


def test_common_words_count_but_bring_in_nothing(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way taken when there are many chunks, on few: words' counts from the statistics of ANALYZE."""
    store = PostgresStore(postgres_url, DIM)
    texts = ["the " + ("zebra " if one in (3, 7) else "") + f"of n{one}" for one in range(200)]
    texts[7] += " " + "filling words " * 10
    store.replace([row for one, text in enumerate(texts) for row in rows(f"d{one:03}", text)])
    store.optimize()
    all_scored = store.matching("the zebra", 200)
    assert len(all_scored) == 200
    monkeypatch.setattr(postgres_words, "_MANY", 10)
    assert ids(store.matching("the zebra", 200)) == ["d003#0", "d007#0"] == ids(all_scored[:2])
    assert store.matching("the zebra", 2)[0][1] == pytest.approx(all_scored[0][1], rel=0.01)
    assert len(store.matching("the of", 200)) == 200
    assert ids(store.matching("the of", 1)) == ["d000#0"]
    assert store.matching("zebu", 5) == []
    store.close()


def test_scoring_the_rarest_first_gives_what_scoring_all_gives(postgres_url: str) -> None:
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, 41)
    texts = [
        " ".join(f"w{word}" for word in rng.choice(40, rng.integers(3, 30), p=share / share.sum())) for _ in range(250)
    ]
    store = PostgresStore(postgres_url, DIM)
    store.replace([row for one, text in enumerate(texts) for row in rows(f"d{one:03}", text)])
    for query in ("w0 w1 w2", "w3 w39 w0", "w38 w39", "w20 w0 w0 w5 w7"):
        everything = [(row.id, score) for row, score in store.matching(query, 250)]
        for top_k in (1, 4):
            assert [(row.id, score) for row, score in store.matching(query, top_k)] == everything[:top_k]
    store.close()
