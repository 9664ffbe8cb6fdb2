from __future__ import annotations

import math
import random

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from gritkit import metrics
from gritkit.errors import InputError

DOCUMENTS = [f"d{number}" for number in range(12)]


@st.composite
def judged_rankings(draw: st.DrawFn) -> tuple[list[str], dict[str, int]]:
    ranking = draw(st.permutations(DOCUMENTS))[: draw(st.integers(0, len(DOCUMENTS)))]
    grades = draw(st.dictionaries(st.sampled_from(DOCUMENTS), st.integers(-1, 3)))
    return ranking, grades


# -- ranking


def test_ranking_metrics_by_hand() -> None:
    grades = {"a": 3, "b": 2, "c": 1, "z": 0}
    ranking = ["x", "b", "z", "a"]
    assert metrics.recall_at_k(ranking, grades, 2) == pytest.approx(1 / 3)
    assert metrics.recall_at_k(ranking, grades, 10) == pytest.approx(2 / 3)
    assert metrics.mrr_at_k(ranking, grades, 10) == 1 / 2
    assert metrics.mrr_at_k(ranking, grades, 1) == 0
    assert metrics.average_precision_at_k(ranking, grades) == pytest.approx((1 / 2 + 2 / 4) / 3)
    assert metrics.average_precision_at_k(ranking, grades, 2) == pytest.approx((1 / 2) / 3)
    dcg = 2 / math.log2(3) + 3 / math.log2(5)
    ideal = 3 / math.log2(2) + 2 / math.log2(3) + 1 / math.log2(4)
    assert metrics.ndcg_at_k(ranking, grades, 10) == pytest.approx(dcg / ideal)
    assert metrics.ndcg_at_k(ranking, grades, 2) == pytest.approx((2 / math.log2(3)) / (3 + 2 / math.log2(3)))


def test_values_of_trec_eval() -> None:
    """Figures that pytrec_eval-terrier 0.5.11 gave for this run, with a tie, a negative grade and an unjudged query."""
    qrels = {
        "q1": {"d1": 1, "d2": 0, "d3": 2, "d4": 1},
        "q2": {"d2": 3, "d5": -1, "d6": 1, "d7": 0},
    }
    run = {
        "q1": {"d2": 0.9, "d3": 0.5, "d9": 0.5, "d1": 0.1},
        "q2": {"d5": 2.0, "d6": 1.0, "d8": 0.5, "d2": 0.4, "d7": 0.1},
        "q3": {"d1": 1.0},
    }
    values = metrics.evaluate_run(qrels, run, ks=[3, 5])
    assert values.pop("mrr@3") == values.pop("mrr@5") == pytest.approx((1 / 3 + 1 / 2) / 2)  # not in trec_eval
    expected = {
        "ndcg@3": 0.2465796430556195,
        "ndcg@5": 0.4932773342741613,
        "recall@3": 0.41666666666666663,
        "recall@5": 0.8333333333333333,
        "map@3": 0.18055555555555555,
        "map@5": 0.38888888888888884,
    }
    assert values == pytest.approx(expected, rel=1e-12)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=10), st.integers(1, 12), st.randoms(use_true_random=False))
def test_ndcg_equals_scikit_learn(grades: list[int], k: int, order: random.Random) -> None:
    """Its gains are linear too; the scores are all different, because it averages over the orders of equal ones."""
    scores = list(range(len(grades)))
    order.shuffle(scores)
    names = [f"d{number}" for number in range(len(grades))]
    ranking = [name for _, name in sorted(zip(scores, names, strict=True), reverse=True)]
    expected = sklearn.metrics.ndcg_score([grades], [scores], k=k)
    assert metrics.ndcg_at_k(ranking, dict(zip(names, grades, strict=True)), k) == pytest.approx(expected)


@given(judged_rankings(), st.integers(1, 15))
def test_ranking_metrics_stay_between_0_and_1_and_a_perfect_order_reaches_1(
    case: tuple[list[str], dict[str, int]], k: int
) -> None:
    ranking, grades = case
    functions = (metrics.recall_at_k, metrics.ndcg_at_k, metrics.mrr_at_k, metrics.average_precision_at_k)
    values = [function(ranking, grades, k) for function in functions]
    assert all(0 <= value <= 1 for value in values)
    perfect = sorted(grades, key=lambda document: -grades[document])
    relevant = sum(grade > 0 for grade in grades.values())
    if relevant:
        assert metrics.ndcg_at_k(perfect, grades, k) == pytest.approx(1)
        assert metrics.mrr_at_k(perfect, grades, k) == 1
        assert metrics.recall_at_k(perfect, grades, k) == pytest.approx(min(k, relevant) / relevant)
        assert metrics.average_precision_at_k(perfect, grades) == pytest.approx(1)
    else:
        assert values == [0, 0, 0, 0]


@given(judged_rankings())
def test_recall_and_average_precision_never_fall_with_k(case: tuple[list[str], dict[str, int]]) -> None:
    ranking, grades = case
    for function in (metrics.recall_at_k, metrics.mrr_at_k, metrics.average_precision_at_k):
        values = [function(ranking, grades, k) for k in range(1, 14)]
        assert values == sorted(values)
    assert metrics.average_precision_at_k(ranking, grades) == metrics.average_precision_at_k(ranking, grades, 13)


@given(st.permutations(range(12)), st.sets(st.integers(0, 11), min_size=1))
def test_map_equals_scikit_learn_on_full_rankings(ranking: list[int], relevant: set[int]) -> None:
    labels = [document in relevant for document in ranking]
    expected = sklearn.metrics.average_precision_score(labels, list(range(12, 0, -1)))
    assert metrics.average_precision_at_k(ranking, dict.fromkeys(relevant, 1)) == pytest.approx(expected)


def test_equal_scores_rank_by_falling_id() -> None:
    assert metrics.rank_documents({"a": 1.0, "c": 1.0, "b": 1.0, "top": 2.0}) == ["top", "c", "b", "a"]


def test_a_query_without_an_answer_counts_as_zero() -> None:
    qrels = {"q1": {"a": 1}, "q2": {"b": 1}}
    assert metrics.evaluate_run(qrels, {"q1": {"a": 1.0}, "q9": {"b": 1.0}}, ks=[1])["recall@1"] == 0.5


def test_unusable_rankings_are_refused() -> None:
    with pytest.raises(InputError, match="'a' stands more than once"):
        metrics.ndcg_at_k(["a", "b", "a"], {"a": 1}, 3)
    with pytest.raises(InputError, match="at least 1, not 0"):
        metrics.recall_at_k(["a"], {"a": 1}, 0)
    with pytest.raises(InputError, match="NaN"):
        metrics.rank_documents({"a": math.nan})
    with pytest.raises(InputError, match="no judged queries"):
        metrics.evaluate_run({}, {})


# -- similarity

SERIES = st.lists(
    st.tuples(st.floats(-1e6, 1e6).map(lambda x: round(x, 3)), st.integers(0, 5)), min_size=2, max_size=30
)


@given(SERIES)
def test_correlations_equal_scipy(pairs: list[tuple[float, int]]) -> None:
    x, y = np.array(pairs, dtype=float).T
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert math.isnan(metrics.pearson(x, y))
        assert math.isnan(metrics.spearman(x, y))
        return
    # Compared where rounding does not decide: with values that differ by 1e-9 of their size, scipy warns.
    if np.ptp(x) > 1e-3 * np.abs(x).max():
        assert metrics.pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x, y).statistic, abs=1e-9)
    assert metrics.spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=30, unique=True))
def test_spearman_sees_order_only(values: list[int]) -> None:
    assert metrics.spearman(values, [math.atan(value) for value in values]) == pytest.approx(1)
    assert metrics.spearman(values, [-(value**3) for value in values]) == pytest.approx(-1)


def test_pearson_survives_extreme_magnitudes() -> None:
    assert metrics.pearson([1e300, 2e300, 3e300], [1e-300, 2e-300, 3e-300]) == pytest.approx(1)
    assert math.isnan(metrics.pearson([0.1, 0.1, 0.1], [1, 2, 3]))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=1, max_size=30))
def test_average_precision_equals_scikit_learn(pairs: list[tuple[bool, int]]) -> None:
    labels, scores = zip(*pairs, strict=True)
    if any(labels):
        expected = sklearn.metrics.average_precision_score(labels, scores)
        assert metrics.average_precision(labels, scores) == pytest.approx(expected)
    else:
        with pytest.raises(InputError, match="no positive label"):
            metrics.average_precision(labels, scores)


def test_unusable_series_are_refused() -> None:
    with pytest.raises(InputError, match="shapes"):
        metrics.pearson([1, 2], [1, 2, 3])
    with pytest.raises(InputError, match="at least 2 values"):
        metrics.spearman([1], [1])
    with pytest.raises(InputError, match="NaN"):
        metrics.spearman([1, math.nan], [1, 2])
    with pytest.raises(InputError, match="0 or 1"):
        metrics.average_precision([0, 2], [0.1, 0.2])


# -- short answers


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Eiffel Tower!", "eiffel tower"),
        ("  an  apple a day ", "apple day"),
        ("a.k.a. Théâtre", "aka théâtre"),  # punctuation goes first, so "a.k.a." is no article
        ("the", ""),
        ("U.S.A", "usa"),
        ("anthem", "anthem"),
        ("“quoted”", "“quoted”"),  # only ASCII punctuation, as in the official script
    ],
)
def test_squad_normal_form(text: str, normal: str) -> None:
    assert metrics.normalize_answer(text) == normal


def test_exact_match_and_f1_take_the_best_answer() -> None:
    assert metrics.exact_match("The Eiffel tower.", ["Paris", "Eiffel Tower"]) == 1
    assert metrics.exact_match("Eiffel", ["Paris", "Eiffel Tower"]) == 0
    # 2 common words of 3 predicted and 4 expected: P = 2/3, R = 1/2
    assert metrics.token_f1("in New York", ["Boston", "New York City hall"]) == pytest.approx(4 / 7)
    assert metrics.token_f1("york york york", ["york new"]) == pytest.approx(2 / 5)  # a bag: one of three counts
    assert metrics.token_f1("the", ["a"]) == 1
    assert metrics.token_f1("the", ["word"]) == 0


def test_match_is_a_plain_substring() -> None:
    assert metrics.match("It was built in 1889, in Paris.", ["London", "1889"]) == 1
    assert metrics.match("it was built in paris.", ["Paris"]) == 0


@given(st.text(), st.lists(st.text(), min_size=1, max_size=4))
def test_an_exact_match_has_full_f1_and_f1_is_symmetric(prediction: str, answers: list[str]) -> None:
    f1 = metrics.token_f1(prediction, answers)
    assert metrics.exact_match(prediction, answers) <= f1 <= 1
    assert f1 == max(metrics.token_f1(answer, [prediction]) for answer in answers)
    assert metrics.exact_match(prediction, [*answers, prediction]) == 1
    if prediction:
        assert metrics.match(f"so {prediction}.", [prediction]) == 1


def test_unusable_answers_are_refused() -> None:
    for metric in (metrics.exact_match, metrics.token_f1, metrics.match):
        with pytest.raises(InputError, match="no accepted answer"):
            metric("x", [])
        with pytest.raises(InputError, match="not the string 'Paris'"):
            metric("x", "Paris")
    with pytest.raises(InputError, match="empty answer"):
        metrics.match("x", [""])


# -- language modelling


def test_perplexity() -> None:
    assert metrics.perplexity(10 * math.log(7), 10) == pytest.approx(7)  # uniform over 7 tokens
    assert metrics.perplexity(0.0, 3) == 1
    assert metrics.perplexity(1e6, 1) == math.inf
    with pytest.raises(InputError, match="0 tokens"):
        metrics.perplexity(1.0, 0)
