from __future__ import annotations

import numpy as np
import pytest

from gritkit.rag.ranking import dots, exact, ranked, recall, sample_queries, true_scores, tuned
from tests.rag.test_stores import clustered, ids, numbered


def test_equal_vectors_score_equally_wherever_they_lie() -> None:
    for dim in (3, 8, 63, 384):
        vectors = clustered(101, dim)
        vectors[::7] = vectors[0]
        query = clustered(1, dim, seed=1)[0]
        scores = dots(vectors, query)
        assert len(set(scores[::7].tolist())) == 1
        assert scores[50] == dots(vectors[50:51], query)[0] == dots(vectors[49:53], query)[1]
        assert scores == pytest.approx(vectors.astype(float) @ query.astype(float))


def test_ranked_goes_by_score_then_by_id() -> None:
    vectors = clustered(20, 8)
    vectors[10:] = vectors[:10]
    rows = numbered(vectors)
    query = clustered(1, 8, seed=1)[0]
    best = sorted(range(20), key=lambda one: (-round(float(vectors[one].astype(float) @ query), 12), one))
    assert ids(ranked(reversed(rows), query, 7)) == [f"d{one:05}#0" for one in best[:7]]
    assert ranked([], query, 7) == []


def test_exact_asks_on_until_no_tie_is_cut() -> None:
    rows = numbered(np.stack([clustered(1, 8)[0]] * 500))[::-1]
    asked = []

    def propose(limit: int) -> list[object]:
        asked.append(limit)
        return rows[:limit]

    assert ids(exact(propose, rows[0].vector, 2)) == ["d00000#0", "d00001#0"]  # type: ignore[arg-type]
    assert asked == [10, 80, 640]


def test_true_scores_are_those_of_the_whole() -> None:
    vectors, queries = clustered(333, 16), clustered(5, 16, seed=1)
    parts = [vectors[:4], vectors[4:200], vectors[200:]]
    want = np.sort(queries @ vectors.T, axis=1)[:, ::-1][:, :10]
    assert np.allclose(true_scores(parts, queries), want, atol=1e-6)
    assert true_scores([vectors[:3]], queries[:1])[0] == pytest.approx(np.sort(queries[0] @ vectors[:3].T)[::-1])


def test_recall_counts_what_is_as_near_as_the_true_ones() -> None:
    assert recall([[0.9, 0.8], [0.5, 0.1]], [[0.9, 0.8], [0.5, 0.4]]) == 0.75
    assert recall([[0.8], []], [[0.8, 0.8], []]) == 0.5


def test_the_cheapest_setting_that_is_good_enough_is_taken() -> None:
    queries, true = clustered(2, 4), [[0.9, 0.8], [0.7, 0.6]]
    found = {"poor": [0.0, 0.0], "good": [1.0, 1.0], "dear": [1.0, 1.0]}

    def search(setting: str, query: np.ndarray, top_k: int) -> list[float]:
        return found[setting][:top_k]

    assert tuned(["poor", "good", "dear"], search, queries, true) == (1, 1.0)
    assert tuned(["poor"], search, queries, true) == (None, 0.0)


def test_queries_to_measure_with_lie_between_vectors() -> None:
    vectors = clustered(50, 32)
    queries = sample_queries(vectors)
    own = (vectors * queries).sum(axis=1)
    assert np.linalg.norm(queries, axis=1) == pytest.approx(1, abs=1e-5)
    assert 0.7 < np.median(own) < 0.995
