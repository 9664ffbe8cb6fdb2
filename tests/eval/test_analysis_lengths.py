from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import spearmanr

from gritkit.errors import InputError
from gritkit_eval.analysis.lengths import length_correlation, sensitivity, variants

TEXTS = ["a b c d e f g h", "one two three four", "p q r s t u"]


def bag(texts: Sequence[str]) -> np.ndarray:
    """Counts of words: what repeats a text has the same direction."""
    words = sorted({word for text in TEXTS for word in text.split()})
    return np.array([[Counter(text.split())[word] for word in words] for text in texts], np.float32)


def test_variants_are_what_their_names_say() -> None:
    made = variants(TEXTS)
    assert made["cut to 50%"] == ["a b c d", "one two", "p q r"]
    assert made["cut to 25%"][1] == "one"
    assert made["repeated x2"][1] == "one two three four one two three four"
    assert made["unrelated after"][0] == "a b c d e f g h one two three four"
    assert made["unrelated before"][0] == "one two three four a b c d e f g h"
    assert variants(["東京都庁", "x"])["cut to 50%"] == ["東京", "x"]
    with pytest.raises(InputError, match="at least two texts"):
        variants(TEXTS[:1])


def test_a_bag_of_words_does_not_mind_repetition() -> None:
    found = sensitivity(TEXTS, bag(TEXTS), bag)
    assert found["repeated x2"] == found["repeated x4"] == pytest.approx(1)
    assert found["cut to 50%"] == pytest.approx(math.sqrt(0.5))
    joined = np.mean([math.sqrt(a / (a + b)) for a, b in ((8, 4), (4, 6), (6, 8))])
    assert found["unrelated after"] == found["unrelated before"] == pytest.approx(joined)


def test_length_correlation_is_spearmans_over_all_pairs() -> None:
    draw = np.random.default_rng(0)
    vectors, lengths = draw.normal(size=(40, 6)), draw.integers(1, 100, 40)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    first, second = np.triu_indices(40, 1)
    cosines = (units[first] * units[second]).sum(axis=1)
    apart = np.abs(np.log(lengths[first]) - np.log(lengths[second]))
    whole = length_correlation(lengths.tolist(), vectors)
    assert whole == pytest.approx(spearmanr(cosines, apart).statistic, abs=1e-9)
    assert length_correlation(lengths.tolist(), vectors, pairs=400) == pytest.approx(whole, abs=0.15)


def test_a_space_of_lengths_shows() -> None:
    lengths = list(range(1, 30))
    angle = np.log(lengths) / 2
    assert length_correlation(lengths, np.stack([np.cos(angle), np.sin(angle)], axis=1)) == pytest.approx(-1, abs=1e-3)
    assert math.isnan(length_correlation([5, 5, 5], np.eye(3)))
    assert math.isnan(length_correlation([1, 5, 9], np.ones((3, 2))))
    with pytest.raises(InputError, match="lengths above 0"):
        length_correlation([1, 0, 2], np.eye(3))
