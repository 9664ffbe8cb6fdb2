"""What ``gritkit eval rag`` measured as outcomes on disk, and back: one for each model, question file and way.

The ways of one model and file take turns while they are measured, so that their times can be compared; they are
therefore found all together or measured all together, on one machine and device. Answers from a knowledge base that is
given are not looked up: what it holds may have changed.

This module knows nothing about how anything is measured.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from gritkit.rag.documents import Document
from gritkit.rag.gate import CLOSED, Measured, Setting
from gritkit.rag.questions import Exam
from gritkit_eval.bench.report import machine
from gritkit_eval.outcome import Outcome, OutcomeFolder, versions_of

KIND = "rag"
METRIC = "f1"
PROTOCOL = 1
"""Goes up when the same questions are asked or scored differently."""
_COUNTS = ("num_questions", "num_tokens", "recomputed")
_NO_SCORES = ("setting", "f1_each")


def version_of(exams: Sequence[Exam], documents: Sequence[Document]) -> str:
    """A digest of the questions and of what is searched for their answers."""
    searched = [[one.text, one.id, one.metadata] for one in documents]
    parts = PROTOCOL, [dataclasses.asdict(exam) for exam in exams], searched
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """A model on a question file: what all ways of one go share."""

    model: str
    fingerprint: str
    questions: str
    version: str
    search: str
    """How documents are found: own passages, or the kind of search."""
    settings: Mapping[str, Any]

    def find(self, ways: Sequence[Setting], folder: OutcomeFolder) -> list[Measured] | None:
        """What an earlier run measured, if it is there for every way."""
        found = [folder.find(KIND, self.questions, self.version, self.fingerprint, self._settings(way)) for way in ways]
        kept = [one for one in found if one is not None]
        return list(map(_measured, ways, kept)) if len(kept) == len(ways) else None

    def save(self, measured: Sequence[Measured], seconds: float, folder: OutcomeFolder) -> None:
        """One outcome for each way; ``seconds`` were spent on all of them, in turns."""
        for one in measured:
            folder.save(self._outcome(one, seconds / len(measured)))

    def _outcome(self, measured: Measured, seconds: float) -> Outcome:
        scores = {name: float(value) for name, value in vars(measured).items() if name not in _NO_SCORES}
        return Outcome(
            kind=KIND, task=self.questions, task_type=CLOSED if measured.setting.mode == CLOSED else self.search,
            version=self.version, model=self.model, fingerprint=self.fingerprint, metric=METRIC, scores=scores,
            examples=measured.f1_each, seconds=seconds, settings=self._settings(measured.setting),
            versions=versions_of("gritkit", "lancedb", "torch", "transformers"),
        )  # fmt: skip

    def _settings(self, way: Setting) -> dict[str, Any]:
        return {**dataclasses.asdict(way), **self.settings, "machine": machine()}


def _measured(way: Setting, outcome: Outcome) -> Measured:
    scores: dict[str, Any] = dict(outcome.scores)
    counts = {name: int(scores[name]) for name in _COUNTS}
    return Measured(setting=way, f1_each=tuple(outcome.examples or ()), **scores | counts)
