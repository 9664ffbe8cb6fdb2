"""Outcomes for tests of reports."""

from __future__ import annotations

from typing import Any

from gritkit_eval.outcome import Outcome


def outcome(task: str = "STS", model: str = "m", score: float = 0.5, **given: Any) -> Outcome:
    """One of kind mteb, type STS, unless told otherwise."""
    fields: dict[str, Any] = {
        "kind": "mteb", "task": task, "task_type": "STS", "version": "1", "model": model,
        "fingerprint": f"print-{model}", "metric": "spearman", "seconds": 1.5, "versions": {"gritkit": "0.1"},
        "machine": "a machine", "made": "2026-01-02T03:04:05+00:00",
    }  # fmt: skip
    fields |= given
    return Outcome(**{"scores": {fields["metric"]: score}, **fields})
