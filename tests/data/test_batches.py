from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from gritkit.data.batches import Choice, Pool
from gritkit.data.tokenised import EmbeddingRow, TextTable, TokenisedData
from gritkit.tokens import sequence


def data(*sources: list[tuple[int, list[int], list[int]]]) -> TokenisedData:
    """From (query, positives, negatives) as numbers, equal ones being the same text. The text's id is its number."""
    numbers = sorted({number for rows in sources for query, pos, neg in rows for number in (query, *pos, *neg)})
    place = {number: i for i, number in enumerate(numbers)}
    return TokenisedData(
        TextTable([sequence([number]) for number in numbers], np.asarray(numbers)),
        [
            (
                f"s{i}",
                [
                    EmbeddingRow(place[query], tuple(place[p] for p in pos), tuple(place[n] for n in neg))
                    for query, pos, neg in rows
                ],
            )
            for i, rows in enumerate(sources)
        ],
        [],
    )


def distinct(count: int, start: int = 0) -> list[tuple[int, list[int], list[int]]]:
    return [(i, [1000 + i], [2000 + i, 3000 + i]) for i in range(start, start + count)]


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def rows_of(drafts: list[list[Choice]]) -> list[int]:
    return [row for draft in drafts for row, _ in draft]


def test_drafts_use_every_row_once_full_ones_of_one_part_and_the_rest_mixed() -> None:
    pool = Pool(data(distinct(10), distinct(6, 10)), 4)
    assert pool.parts == [range(10), range(10, 16)]
    for seed in range(5):
        drafts = pool.drafts(pool.parts, random(seed))
        assert sorted(rows_of(drafts)) == list(range(16))  # 4 + 4, 4, and the 2 + 2 that are left
        parts = [len({row >= 10 for row, _ in draft}) for draft in drafts]
        assert sorted(parts) == [1, 1, 1, 2]


def test_drafts_of_one_part_leave_the_others_alone() -> None:
    pool = Pool(data(distinct(10), distinct(6, 10)), 4)
    drafts = pool.drafts([pool.parts[1]], random())
    counts = Counter(rows_of(drafts))
    assert set(counts) == set(range(10, 16))
    assert [len(draft) for draft in drafts] == [4, 4]  # the second filled up with two rows drawn anew


def test_a_set_smaller_than_a_batch_makes_a_short_one() -> None:
    pool = Pool(data(distinct(3)), 8)
    (draft,) = pool.drafts(pool.parts, random())
    assert sorted(rows_of([draft])) == [0, 1, 2]


def test_rows_that_repeat_a_query_or_a_positive_wait() -> None:
    pool = Pool(data([(1, [10], []), (1, [11], []), (2, [10], []), (3, [12, 10], [])]), 4)
    for seed in range(10):
        drafts = pool.drafts(pool.parts, random(seed))
        assert set(rows_of(drafts)) == {0, 1, 2, 3}
        for draft in drafts:
            batch = pool.batch(draft, 0, random())
            assert len(set(batch.query_words)) == len(set(batch.passage_words)) == len(draft)


def test_rows_whose_queries_are_alone_wait_for_none_but_are_not_twice_in_a_batch() -> None:
    alike = [(1, [10], []) for _ in range(6)]
    pool = Pool(data(alike, distinct(1, 100)), 4, {"s0"})
    for seed in range(10):
        drafts = pool.drafts(pool.parts, random(seed))
        assert len(drafts) == 2
        for draft in drafts:
            assert len(set(rows_of([draft]))) == len(draft)
            batch = pool.batch(draft, 0, random())
            assert batch.alone == [row < 6 for row, _ in draft]


@pytest.mark.parametrize("wanted", [0, 1, 2, 3, 5])
def test_a_batch_lists_positives_first_then_hard_negatives(wanted: int) -> None:
    pool = Pool(data([*distinct(3), (9, [1009], [])]), 4)
    (draft,) = pool.drafts(pool.parts, random())
    batch = pool.batch(draft, wanted, random())
    queries = [int(text.ids[0]) for text in batch.queries]
    assert [int(text.ids[0]) for text in batch.passages[:4]] == [1000 + query for query in queries]
    assert batch.owners[:4] == [0, 1, 2, 3]
    assert len(batch.passages) == len(batch.owners) == len(batch.passage_words) == 4 + 3 * wanted
    for text, owner, words in zip(batch.passages[4:], batch.owners[4:], batch.passage_words[4:], strict=True):
        assert int(text.ids[0]) == words
        assert words % 1000 == queries[owner] != 9
    drawn = Counter(batch.passage_words[4:])
    assert not drawn or max(drawn.values()) - min(drawn.values()) <= 1 or wanted == 1  # each once before any twice
    assert batch.source == "s0"
    assert batch.answers == [None] * 4
