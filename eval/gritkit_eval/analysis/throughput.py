"""How fast a model embeds: texts and tokens a second, after a warm-up.

This module knows nothing about quality.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gritkit import GritModel
from gritkit_eval.analysis.texts import sampled, strings
from gritkit_eval.analysis.words import words

ROUNDS = 3
TEXTS = 256


@dataclass(frozen=True)
class Rate:
    """The median of the rounds; ``tokens`` counts those that the model reads, format included."""

    texts: float
    tokens: float


def texts_of_tasks(tasks: Sequence[Any], seed: int) -> list[str]:
    """``TEXTS`` random texts of mteb's tasks that hold their data."""
    return sampled((text for task in tasks for text in _texts(task.dataset)), TEXTS, seed)


def _texts(data: Any) -> Iterator[str]:
    """Of nested splits and tables; a task's other parts (grades, candidates) hold no texts."""
    if hasattr(data, "column_names") and not isinstance(data, Mapping):
        for row in data:
            yield from (text for _, text in strings(row) if words(text))
    elif isinstance(data, Mapping):
        for name, part in data.items():
            if name not in ("relevant_docs", "top_ranked"):
                yield from _texts(part)


def rate(model: GritModel, texts: Sequence[str], *, layers: int | None = None, max_length: int | None = None) -> Rate:
    """Of embedding all texts at once, tokenising included; the first, uncounted round is the warm-up."""
    limit = max_length or min(model.embedding_config.max_length, model.context_length)
    tokens = sum(map(len, model.tokens.to_embed(list(texts), "passage", None, limit, truncate=True)))
    seconds = []
    for _ in range(1 + ROUNDS):
        started = time.perf_counter()
        model.embed(texts, layers=layers, max_length=limit, truncate=True)
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds[1:])
    return Rate(len(texts) / median, tokens / median)
