"""How diverse a set of texts is: by its words, and by its vectors.

All figures grow or shrink with the number of texts, so sets are compared on samples of one size.

This module knows nothing about files or models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gritkit.errors import InputError, MissingExtraError
from gritkit.search import top_k
from gritkit_eval.analysis.geometry import entropy_rank, unit

Floats = npt.NDArray[np.floating[Any]]


def distinct_n(texts: Sequence[Sequence[str]], n: int) -> float:
    """Different n-grams / all n-grams of texts that were cut into words; NaN where there are none.

    Li et al. 2016 (arXiv 1510.03055). With n = 1 it is the type/token ratio.
    """
    counts: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        counts.update(tuple(text[i : i + n]) for i in range(len(text) - n + 1))
    total = counts.total()
    return len(counts) / total if total else float("nan")


def similar_share(texts: Sequence[Sequence[str]], *, n: int = 3, jaccard: float = 0.8) -> float:
    """Share of texts of which another text shares at least ``jaccard`` of the different n-grams of both.

    |A and B| / |A or B| over sets of word n-grams (Broder 1997, "On the resemblance and containment of documents"); a
    text of fewer words is one gram of its own. Exact: every pair that shares a gram is counted.
    """
    if not texts:
        return float("nan")
    sets = [frozenset(tuple(text[i : i + n]) for i in range(max(1, len(text) - n + 1))) for text in texts]
    holders: dict[tuple[str, ...], list[int]] = {}
    similar: set[int] = set()
    for number, grams in enumerate(sets):
        common: Counter[int] = Counter()
        for gram in grams:
            common.update(holders.get(gram, ()))
            holders.setdefault(gram, []).append(number)
        for other, shared in common.items():
            if shared >= jaccard * (len(grams) + len(sets[other]) - shared):
                similar |= {number, other}
    return len(similar) / len(texts)


def vendi_score(vectors_ND: Floats) -> float:
    """The effective number of different texts, between 1 and N: exp of the entropy of the eigenvalues of K / N.

    K is the cosine of every pair. Friedman and Dieng 2023 (arXiv 2210.02410). The eigenvalues are the squared
    singular values of the unit vectors over N, so nothing of size N x N is made.
    """
    if not len(vectors_ND):
        raise InputError("no vectors: a Vendi score needs at least one")
    values = np.linalg.svd(unit(vectors_ND), compute_uv=False) ** 2
    return entropy_rank(values)


def nearest_cosines(vectors_ND: Floats) -> npt.NDArray[np.float32]:
    """The cosine of each vector's nearest other one [N]; at least two vectors."""
    if len(vectors_ND) < 2:
        raise InputError("a nearest neighbour needs at least two vectors")
    vectors = unit(vectors_ND)
    scores, indices = top_k(vectors, vectors, 2)
    own = indices[:, 0] == np.arange(len(vectors))  # a copy of the vector may stand in its own place
    nearest: npt.NDArray[np.float32] = np.where(own, scores[:, 1], scores[:, 0])
    return nearest


def cluster_entropy(vectors_ND: Floats, *, clusters: int, seed: int) -> float:
    """Entropy of the sizes of k-means clusters / its largest value log(clusters): 1 where all are of one size.

    With fewer different vectors than ``clusters``, these have a cluster each. Raises MissingExtraError without
    scikit-learn.
    """
    try:
        from sklearn.cluster import KMeans
    except ImportError:
        raise MissingExtraError("scikit-learn", "eval") from None
    vectors = unit(vectors_ND)
    different, numbers = np.unique(vectors, axis=0, return_inverse=True)
    if len(different) > clusters:
        numbers = KMeans(clusters, n_init=1, random_state=seed).fit_predict(vectors)
    shares = np.bincount(numbers.ravel()) / len(vectors)
    shares = shares[shares > 0]
    return abs(float(-(shares * np.log(shares)).sum() / np.log(clusters)))
