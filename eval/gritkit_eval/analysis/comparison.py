"""The two sides of a comparison: an evaluation's texts in memory, training texts that stream.

This module knows nothing about what they are compared by.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gritkit.data.sources import Problems
from gritkit.errors import InputError
from gritkit_eval.analysis.texts import DataFile, Text, data_files, digest, texts_of
from gritkit_eval.analysis.words import words


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One comparison."""

    train: tuple[Path, ...]
    evaluation: tuple[Path, ...]
    ns: tuple[int, ...] = (8, 13)
    min_words: int = 4
    """Texts of fewer words are left out: a "yes" is in every file."""
    threshold: float = 0.9
    """The cosine from which a training text counts as the same."""
    worst: int = 10
    """Of each evaluation file, how many texts are named."""
    sample: int = 2000
    """Training texts whose diversity is measured."""
    limit: int | None = None
    """The first rows of each file."""
    seed: int = 0
    """Chooses the sample."""

    def __post_init__(self) -> None:
        if not self.ns or min(self.ns) < 1:
            raise InputError(f"n={','.join(map(str, self.ns))!r} must be whole numbers of at least 1")
        if self.min_words < 1:
            raise InputError(f"min_words={self.min_words} must be at least 1")
        if not -1 <= self.threshold <= 1:
            raise InputError(f"threshold={self.threshold} is no cosine: it must be between -1 and 1")


class Comparison:
    """Both sides, the evaluation's texts read. Raises InputError where it has none, RecordError naming the bad rows."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.train = data_files(settings.train)
        self.evaluation = data_files(settings.evaluation)
        self.train_name = " + ".join(file.name for file in self.train[:3]) + (" ..." if len(self.train) > 3 else "")
        self.train_version = digest(self.train)
        problems = Problems("nothing was compared")
        texts = {file: [text for text, _ in self._long(file, problems)] for file in self.evaluation}
        problems.check()
        self.texts = {file: found for file, found in texts.items() if found}
        self.empty = [file.name for file in texts if file not in self.texts]
        """Evaluation files without a text to compare, as one of relevance judgements."""
        if not self.texts:
            raise InputError(f"no text of {settings.min_words} words or more to compare in {', '.join(self.empty)}")

    def version(self, file: DataFile) -> str:
        """Of what is compared: a digest of both sides."""
        return hashlib.sha256(f"{self.train_version} {digest([file])}".encode()).hexdigest()[:32]

    def _long(self, file: DataFile, problems: Problems) -> Iterator[tuple[Text, list[str]]]:
        """Texts that are long enough, with their words, which are what takes time."""
        for text in texts_of(file, problems, limit=self.settings.limit):
            found = words(text.text)
            if len(found) >= self.settings.min_words:
                yield text, found

    def training_texts(self) -> Iterator[tuple[Text, list[str]]]:
        """All of them with their words, in order.

        Raises, at the end:
            RecordError: naming every bad row. InputError: where there was no text.
        """
        problems, any_text = Problems("nothing was compared"), False
        for file in self.train:
            for pair in self._long(file, problems):
                any_text = True
                yield pair
        problems.check()
        if not any_text:
            raise InputError(f"no text of {self.settings.min_words} words or more to compare with in {self.train_name}")
