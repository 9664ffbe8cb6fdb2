"""The section of ``eval overlap``: tables, the worst texts with their places, and a plot.

This module knows nothing about how any of it was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gritkit_eval.analysis.comparison import Settings
from gritkit_eval.analysis.contamination import RANDOM, Finding
from gritkit_eval.bench.report import section, table
from gritkit_eval.drawing import COLOURS, figure, save
from gritkit_eval.outcome import Outcome
from gritkit_eval.report.words import markdown

TITLE = "eval overlap"
PLOT = Path("plots/eval-overlap.png")
"""Beside the results file."""


@dataclass(frozen=True)
class Report:
    """Everything that one call found."""

    settings: Settings
    train_name: str
    by_words: list[Finding]
    by_vectors: list[Finding]
    diversity: list[Outcome]
    empty: list[str]
    """Evaluation files without texts."""
    title: str = TITLE

    @property
    def outcomes(self) -> list[Outcome]:
        return [*(one.outcome for one in (*self.by_words, *self.by_vectors)), *self.diversity]

    def tables(self) -> str:
        """All tables and the worst texts, as Markdown."""
        parts = [f"Training texts: {markdown(self.train_name)}.", _table(self.by_words)]
        if self.by_vectors:
            parts.append(f"Nearest training text by the vectors of {markdown(self.by_vectors[0].outcome.model)}:")
            parts.append(_table(self.by_vectors))
            parts += self._anisotropy()
        if self.empty:
            parts.append(f"Without texts of {self.settings.min_words} words: {', '.join(map(markdown, self.empty))}.")
        parts += [f"Diversity of {self.settings.sample:,} of the training texts at most:", _diversity(self.diversity)]
        for what, findings in (("n-grams", self.by_words), ("vectors", self.by_vectors)):
            worst = [one for finding in findings for one in finding.offenders]
            if worst:
                parts += [f"The worst by {what}:", _worst(findings)]
        return "\n\n".join(parts)

    def _anisotropy(self) -> list[str]:
        """A warning where the threshold is nearer to a random pair's cosine than to a copy's."""
        counts = [one.outcome.scores["texts"] for one in self.by_vectors]
        cosines = [one.outcome.scores[RANDOM] for one in self.by_vectors]
        mean = sum(count * cosine for count, cosine in zip(counts, cosines, strict=True)) / sum(counts)
        threshold = self.settings.threshold
        if threshold - mean > 1 - threshold:
            return []
        return [
            f"The threshold says little here: two texts at random have a cosine of {mean:.3f} by this model, on "
            f"average, so {threshold:g} is nearer to that than to a copy's 1. Its vectors all point much the same way; "
            "go by the n-grams, or by another model."
        ]

    def section(self, command: str) -> str:
        about = (
            "A text is any string of a row but names and labels. Words are folded (NFKC, case, punctuation). 'copies' "
            "is the share of the evaluation's texts that the training files hold word by word, 'any n-gram' that of "
            "texts which share an n-gram of words with them (a shorter text counts as one gram of its own), 'share of "
            "n-grams' how much of a text is shared, on average."
        )
        if self.by_vectors:
            about += f" The {RANDOM} is the mean over all pairs of an evaluation text and a training text."
        picture = f"![Texts that share an n-gram with the training files]({PLOT.as_posix()})"
        versions = self.by_words[0].outcome.versions
        return section(TITLE, command, versions, "\n\n".join([about, picture, self.tables()]))

    def plot(self, results: Path) -> Path:
        """Shares by evaluation file, beside the results file."""
        names = [one.file for one in self.by_words]
        metrics = [name for name in self.by_words[0].outcome.scores if name == "copies" or name.startswith("any ")]
        drawn = figure(7.5, 1.2 + 0.16 * len(names) * (len(metrics) + 1))
        axes = drawn.add_subplot()
        height = 0.8 / len(metrics)
        for number, metric in enumerate(metrics):
            places = [row + number * height for row in range(len(names))]
            shares = [100 * one.outcome.scores[metric] for one in self.by_words]
            bars = axes.barh(places, shares, height * 0.9, color=COLOURS[number % len(COLOURS)], label=metric)
            axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=7)
        axes.set_yticks([row + 0.4 - height / 2 for row in range(len(names))], names)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xlabel(f"% of texts also in {self.train_name}")
        axes.legend(frameon=False)
        save(drawn, results.parent / PLOT)
        return results.parent / PLOT


def _table(findings: Sequence[Finding]) -> str:
    names = list(findings[0].outcome.scores)
    rows = [[one.file, *(_figure(name, one.outcome.scores[name]) for name in names)] for one in findings]
    return table(["evaluation file", *names], rows)


def _diversity(outcomes: Sequence[Outcome]) -> str:
    rows = [[one.model, name, _plain(name, value)] for one in outcomes for name, value in one.scores.items()]
    return table(["by", "figure", "value"], rows)


def _worst(findings: Sequence[Finding]) -> str:
    rows = [
        [one.evaluation, one.train, "copy" if one.copy else f"{one.share:.3f}", one.text]
        for finding in findings
        for one in finding.offenders
    ]
    return table(["evaluation text at", "training text at", "shared", "text"], rows)


def _figure(name: str, value: float) -> str:
    if name == "texts":
        return f"{value:,.0f}"
    return f"{value:.3f}" if "nearest" in name or name == RANDOM else f"{value:.2%}"


def _plain(name: str, value: float) -> str:
    return f"{value:,.0f}" if name == "texts" else f"{value:.4g}"
