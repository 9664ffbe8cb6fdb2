"""``gritkit eval overlap``: contamination of evaluation files by training files, and diversity of those.

This module knows nothing about how any of it is found, or tables.
"""

from __future__ import annotations

from gritkit_eval.analysis.comparison import Comparison, Settings
from gritkit_eval.analysis.contamination import by_vectors, by_words
from gritkit_eval.analysis.models import embedder, opened
from gritkit_eval.analysis.overlap_report import Report
from gritkit_eval.analysis.training_set import diversity
from gritkit_eval.outcome import OutcomeFolder


def run(settings: Settings, outcomes: OutcomeFolder, *, model: str | None = None) -> Report:
    """Everything by words and, with a model, by its vectors.

    Raises:
        InputError: where a side has no texts. RecordError: naming file and line of every bad row.
    """
    comparison = Comparison(settings)
    findings, near = by_words(comparison, outcomes), []
    figures = [diversity(comparison, outcomes)]
    if model is not None:
        name, loaded = opened(model)
        embed, fingerprint = embedder(loaded), loaded.fingerprint
        near = by_vectors(comparison, outcomes, embed, model=name, fingerprint=fingerprint)
        figures.append(diversity(comparison, outcomes, embed, model=name, fingerprint=fingerprint))
    return Report(
        settings=settings, train_name=comparison.train_name, by_words=findings, by_vectors=near, diversity=figures,
        empty=comparison.empty,
    )  # fmt: skip
