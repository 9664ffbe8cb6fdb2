"""The figures that tell whether a model is good: ranking, similarity, short answers, perplexity.

Every function takes plain values (ids, numbers, strings) and returns a float; a mean over many queries or questions is
the caller's, except in :func:`evaluate_run`. Ranking follows trec_eval, which BEIR and MTEB report through pytrec_eval:
a document is relevant when its grade is above 0, and one that nobody judged has grade 0.

This module knows nothing about models, vectors or data sets.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from gritkit.errors import InputError

Id = TypeVar("Id", bound=Hashable)

# ---------------------------------------------------------------------------------------------------------------------
# Ranking. `ranking` is a list of document ids, best first, without repetition; `grades` maps document ids to grades.
# ---------------------------------------------------------------------------------------------------------------------


def recall_at_k(ranking: Sequence[Id], grades: Mapping[Id, float], k: int) -> float:
    """Relevant documents among the first ``k`` / all relevant documents; 0 when nothing is relevant.

    trec_eval's ``recall_k``.
    """
    top = _top(ranking, k)
    relevant = sum(grade > 0 for grade in grades.values())
    found = sum(grades.get(document, 0) > 0 for document in top)
    return found / relevant if relevant else 0.0


def ndcg_at_k(ranking: Sequence[Id], grades: Mapping[Id, float], k: int) -> float:
    """Discounted gain of the first ``k`` / that of the best possible order; 0 when nothing is relevant.

    DCG = sum over ranks r = 1..k of max(grade_r, 0) / log2(r + 1). The gain is the grade itself, as in trec_eval's
    ``ndcg_cut_k`` (Järvelin and Kekäläinen 2002), not 2^grade - 1. The best order is over all judged documents.
    """
    gains = [max(grades.get(document, 0), 0) for document in _top(ranking, k)]
    ideal = sorted((grade for grade in grades.values() if grade > 0), reverse=True)[:k]
    best = _dcg(ideal)
    return _dcg(gains) / best if best else 0.0


def mrr_at_k(ranking: Sequence[Id], grades: Mapping[Id, float], k: int) -> float:
    """1 / rank of the first relevant document among the first ``k``, else 0 (MS MARCO's MRR@10 with ``k = 10``)."""
    for rank, document in enumerate(_top(ranking, k), start=1):
        if grades.get(document, 0) > 0:
            return 1 / rank
    return 0.0


def average_precision_at_k(ranking: Sequence[Id], grades: Mapping[Id, float], k: int | None = None) -> float:
    """Sum of precision@r over the ranks r <= ``k`` that hold a relevant document / all relevant documents.

    trec_eval's ``map_cut_k``, and ``map`` without ``k``; its mean over queries is MAP. 0 when nothing is relevant.
    """
    relevant = sum(grade > 0 for grade in grades.values())
    found, total = 0, 0.0
    for rank, document in enumerate(_top(ranking, len(ranking) or 1 if k is None else k), start=1):
        if grades.get(document, 0) > 0:
            found += 1
            total += found / rank
    return total / relevant if relevant else 0.0


def rank_documents(scores: Mapping[str, float]) -> list[str]:
    """Document ids by falling score; equal scores by falling id, compared as UTF-8 bytes, as trec_eval does."""
    if any(math.isnan(score) for score in scores.values()):
        raise InputError("a score of the run is NaN")
    return sorted(scores, key=lambda document: (scores[document], document.encode()), reverse=True)


def evaluate_run(
    qrels: Mapping[str, Mapping[str, float]],
    run: Mapping[str, Mapping[str, float]],
    *,
    ks: Sequence[int] = (1, 5, 10, 100),
) -> dict[str, float]:
    """Means over queries: ``ndcg@k``, ``recall@k``, ``map@k`` and ``mrr@k`` for every ``k`` of ``ks``.

    ``qrels``: query id -> document id -> grade. ``run``: query id -> document id -> score.
    The mean is over the queries of ``qrels``: one that the run does not answer counts as 0 (trec_eval ``-c``), where
    pytrec_eval leaves it out and so lets a run gain by failing. Queries that nobody judged are ignored.
    """
    if not qrels:
        raise InputError("no judged queries: the mean over nothing is not defined")
    metrics = {"ndcg": ndcg_at_k, "recall": recall_at_k, "map": average_precision_at_k, "mrr": mrr_at_k}
    sums: dict[str, float] = {f"{name}@{k}": 0.0 for name in metrics for k in ks}
    for query, grades in qrels.items():
        ranking = rank_documents(run.get(query, {}))
        for name, metric in metrics.items():
            for k in ks:
                sums[f"{name}@{k}"] += metric(ranking, grades, k)
    return {name: total / len(qrels) for name, total in sums.items()}


def _top(ranking: Sequence[Id], k: int) -> Sequence[Id]:
    if k < 1:
        raise InputError(f"k must be at least 1, not {k}")
    top = ranking[:k]
    if len(set(top)) != len(top):
        repeated = next(document for document, count in Counter(top).items() if count > 1)
        raise InputError(f"document {repeated!r} stands more than once in a ranking")
    return top


def _dcg(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


# ---------------------------------------------------------------------------------------------------------------------
# Similarity and pair classification. Arrays are one-dimensional, [n].
# ---------------------------------------------------------------------------------------------------------------------


def pearson(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Linear correlation of two series [n]: cov(x, y) / (std(x) std(y)). NaN, undefined, when either is constant."""
    x, y = _series(first, second)
    if x.min() == x.max() or y.min() == y.max():  # before the means: rounding gives a constant a tiny spread
        return math.nan
    # Scaled first: squares of very large or very small values would overflow or vanish.
    x, y = x / np.abs(x).max(), y / np.abs(y).max()
    x, y = x - x.mean(), y - y.mean()
    value = float(x / np.linalg.norm(x) @ (y / np.linalg.norm(y)))
    return min(1.0, max(-1.0, value))


def spearman(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Pearson's correlation of the ranks of two series [n], equal values sharing their mean rank (Spearman 1904).

    The measure of STS: model similarities against human scores. NaN, undefined, when either is constant.
    """
    x, y = _series(first, second)
    return pearson(_ranks(x), _ranks(y))


def average_precision(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Area under the precision-recall steps of a yes/no decision by score; both [n], labels 0 or 1.

    AP = sum over thresholds of (R_n - R_{n-1}) P_n, equal scores being one threshold (scikit-learn's
    ``average_precision_score``; MTEB's main figure for pair classification). Needs at least one positive.
    """
    truth, score = _series(labels, scores, smallest=1)
    if not np.isin(truth, (0.0, 1.0)).all():
        raise InputError("labels must be 0 or 1")
    if not truth.any():
        raise InputError("no positive label: the precision-recall curve is not defined")
    order = np.argsort(-score, kind="stable")
    truth, score = truth[order], score[order]
    last = np.append(score[1:] != score[:-1], True)  # the end of each group of equal scores
    hits = np.cumsum(truth)[last]
    precision = hits / (np.flatnonzero(last) + 1)
    recall = hits / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def _series(first: npt.ArrayLike, second: npt.ArrayLike, smallest: int = 2) -> tuple[Any, Any]:
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise InputError(f"two series of one length are needed, not shapes {x.shape} and {y.shape}")
    if len(x) < smallest:
        raise InputError(f"at least {smallest} values are needed, not {len(x)}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError("a series holds NaN or infinity")
    return x, y


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Ranks from 1, [n]; equal values get the mean of the ranks they cover."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean: npt.NDArray[np.float64] = last - (counts - 1) / 2
    return mean[group]


# ---------------------------------------------------------------------------------------------------------------------
# Short answers. `answers` are the accepted ones; the best of them counts.
# ---------------------------------------------------------------------------------------------------------------------

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """SQuAD's normal form: lower case, no ASCII punctuation, no articles, single spaces, in this order."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 when the prediction equals an answer in SQuAD's normal form, else 0 (Rajpurkar et al. 2016)."""
    return max(float(normalize_answer(prediction) == normalize_answer(answer)) for answer in _accepted(answers))


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """2 P R / (P + R) over the bags of words in SQuAD's normal form, the best answer counting.

    The form of SQuAD 2.0: where either side has no words, 1 if both have none, else 0.
    """
    words = normalize_answer(prediction).split()
    return max(_f1(words, normalize_answer(answer).split()) for answer in _accepted(answers))


def match(prediction: str, answers: Sequence[str]) -> float:
    """1 when an answer is a substring of the prediction, else 0: the "match" of the RAG literature.

    As in Mallen et al. 2023 (PopQA), Self-RAG and GRIT: case and punctuation count, nothing is normalised. Pass
    both through :func:`normalize_answer` for the lenient form.
    """
    if not all(_accepted(answers)):
        raise InputError("an empty answer is part of every prediction")
    return float(any(answer in prediction for answer in answers))


def _accepted(answers: Sequence[str]) -> Sequence[str]:
    if isinstance(answers, str):
        raise InputError(f"answers must be a list of strings, not the string {answers!r}")
    if not answers:
        raise InputError("no accepted answer is given")
    return answers


def _f1(predicted: list[str], expected: list[str]) -> float:
    if not predicted or not expected:
        return float(predicted == expected)
    common = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * common / (len(predicted) + len(expected))  # = 2PR/(P+R), without the division by zero


# ---------------------------------------------------------------------------------------------------------------------
# Language modelling
# ---------------------------------------------------------------------------------------------------------------------


def perplexity(nll_sum: float, count: int) -> float:
    """exp(``nll_sum`` / ``count``): the negative log-likelihood in nats, summed over ``count`` predicted tokens."""
    if count < 1:
        raise InputError(f"perplexity over {count} tokens is not defined")
    try:
        return math.exp(nll_sum / count)
    except OverflowError:
        return math.inf
