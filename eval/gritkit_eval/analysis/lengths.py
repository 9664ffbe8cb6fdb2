"""What the length of a text does to its vector: cut, repeated, lengthened by something else.

A function that embeds is all that is asked of a model. This module knows nothing about files or models.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gritkit.errors import InputError
from gritkit.metrics import spearman
from gritkit_eval.analysis.geometry import unit
from gritkit_eval.analysis.models import Embed

Floats = npt.NDArray[np.floating[Any]]

SHARES = (0.25, 0.5, 0.75)
TIMES = (2, 4)


def variants(texts: Sequence[str]) -> dict[str, list[str]]:
    """Each text changed in length, by what was done: cut to its first words, repeated, and joined with the text that
    stands half the list away (unrelated where the order is random). At least two texts."""
    if len(texts) < 2:
        raise InputError("an unrelated text to join with needs at least two texts")
    others = [texts[(number + len(texts) // 2) % len(texts)] for number in range(len(texts))]
    made = {f"cut to {share:.0%}": [_cut(text, share) for text in texts] for share in SHARES}
    made |= {f"repeated x{times}": [" ".join([text] * times) for text in texts] for times in TIMES}
    made["unrelated after"] = [f"{text} {other}" for text, other in zip(texts, others, strict=True)]
    made["unrelated before"] = [f"{other} {text}" for text, other in zip(texts, others, strict=True)]
    return made


def _cut(text: str, share: float) -> str:
    """The first words, at least one; of a text without spaces the first characters."""
    words = re.findall(r"\S+", text)
    if len(words) < 2:
        return text[: max(1, round(len(text) * share))]
    return " ".join(words[: max(1, round(len(words) * share))])


def sensitivity(texts: Sequence[str], vectors_ND: Floats, embed: Embed) -> dict[str, float]:
    """The mean cosine of texts with each of their :func:`variants`. 1 for a bag of words that is only repeated."""
    vectors = unit(vectors_ND)
    return {
        name: float((vectors * unit(embed(changed))).sum(axis=1).mean()) for name, changed in variants(texts).items()
    }


def length_correlation(lengths_N: Sequence[float], vectors_ND: Floats, *, pairs: int = 100_000, seed: int = 0) -> float:
    """Spearman's correlation of cosine and |log length_a - log length_b| over random pairs of different texts; below 0
    where texts of like length lie nearer than others. NaN where all lengths or all cosines are equal."""
    if len(vectors_ND) < 3 or len(lengths_N) != len(vectors_ND) or min(lengths_N) <= 0:
        raise InputError("needed are three or more vectors and as many lengths above 0")
    vectors, logs = unit(vectors_ND), np.log(np.asarray(lengths_N, np.float64))
    first, second = np.triu_indices(len(vectors), 1)
    if len(first) > pairs:
        chosen = np.random.default_rng(seed).choice(len(first), pairs, replace=False)
        first, second = first[chosen], second[chosen]
    cosines = np.concatenate(
        [(vectors[a] * vectors[b]).sum(axis=1) for a, b in zip(_blocks(first), _blocks(second), strict=True)]
    )
    apart = np.abs(logs[first] - logs[second])
    if np.ptp(cosines) < 1e-12 or np.ptp(apart) == 0:
        return float("nan")
    return spearman(cosines, apart)


def _blocks(indices: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """So that the vectors of all pairs are never held at once."""
    return np.array_split(indices, max(1, len(indices) // 4096))
