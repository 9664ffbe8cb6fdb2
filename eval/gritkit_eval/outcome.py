"""What one task measured, as one JSON file: what evaluations write, resume from, and reports read.

A file is named by everything its figures depend on: the task and its version, the model's fingerprint, the settings. So
a run that was cut short goes on where it stopped, and a changed model, task or setting is measured anew.

This module knows nothing about how anything is measured or drawn.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gritkit.errors import InputError
from gritkit.files import write_atomic
from gritkit_eval.bench.report import machine

FORMAT = 1
_NUMBERS = ("seconds",)
_TEXTS = ("kind", "task", "task_type", "version", "model", "fingerprint", "metric", "made", "machine")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One task on one model."""

    kind: str
    """Which evaluation: mteb, generation, rag ..."""
    task: str
    task_type: str
    """What the task is averaged with."""
    version: str
    """Of the task's data and protocol."""
    model: str
    """A name for people."""
    fingerprint: str
    """What the model computes; the name and version of a method without weights."""
    metric: str
    """The main one of ``scores``."""
    scores: Mapping[str, float]
    """Metric -> value; NaN where it is not defined."""
    seconds: float
    examples: Sequence[float] | None = None
    """The main metric of every example, in the order of the data, where ``scores[metric]`` is their mean: what a paired
    bootstrap draws from."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What else the figures depend on: limit, seed, precision ..."""
    versions: Mapping[str, str] = field(default_factory=dict)
    made: str = field(
        default_factory=lambda: datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    )
    machine: str = field(default_factory=machine)

    def __post_init__(self) -> None:
        if self.metric not in self.scores:
            raise InputError(f"{self.task}: the main metric {self.metric!r} is not among {', '.join(self.scores)}")

    @property
    def score(self) -> float:
        return self.scores[self.metric]

    @property
    def key(self) -> str:
        return key_of(self.kind, self.task, self.version, self.fingerprint, self.settings)


def key_of(kind: str, task: str, version: str, fingerprint: str, settings: Mapping[str, Any]) -> str:
    """A digest of everything that figures depend on. Settings must be plain JSON values."""
    parts = json.dumps([FORMAT, kind, task, version, fingerprint, dict(settings)], sort_keys=True, allow_nan=False)
    return hashlib.sha256(parts.encode()).hexdigest()


def versions_of(*packages: str) -> dict[str, str]:
    """Installed versions, of those packages that are there."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class OutcomeFolder:
    """A folder of outcomes: ``<kind>/<model>/<task>-<key>.json``."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def find(self, kind: str, task: str, version: str, fingerprint: str, settings: Mapping[str, Any]) -> Outcome | None:
        """What an earlier run measured of just this, whatever the model was called. Raises InputError for a file that
        is not whole."""
        name = _file_name(task, key_of(kind, task, version, fingerprint, settings))
        for path in sorted((self.folder / kind).glob(f"*/{name}")):
            return load(path)
        return None

    def save(self, outcome: Outcome) -> Path:
        """Write it whole or not at all."""
        path = self.folder / outcome.kind / _plain(outcome.model) / _file_name(outcome.task, outcome.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        fields = {"format": FORMAT, **dataclasses.asdict(outcome)}
        fields["scores"] = {name: _or_null(value) for name, value in outcome.scores.items()}
        if outcome.examples is not None:
            fields["examples"] = [_or_null(value) for value in outcome.examples]
        write_atomic(path, json.dumps(fields, indent=1, allow_nan=False, ensure_ascii=False).encode() + b"\n")
        return path

    def all(self) -> list[Outcome]:
        """Every outcome, in the order of the file names.

        Raises:
            InputError: for a folder that does not exist, or a file that is not an outcome.
        """
        if not self.folder.is_dir():
            raise InputError(f"no folder of results: {self.folder}")
        return [load(path) for path in sorted(self.folder.glob("*/*/*.json"))]


def load(path: Path) -> Outcome:
    """Raises InputError, naming the file, for one that is not an outcome or is of a later format."""
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the results in {path}: {error}") from None
    if not isinstance(given, dict) or given.get("format") != FORMAT:
        found = given.get("format") if isinstance(given, dict) else None
        raise InputError(f"{path} is not a result of format {FORMAT} but of {found!r}: measure again")
    known = {one.name for one in dataclasses.fields(Outcome)}
    fields = {name: value for name, value in given.items() if name != "format"}
    wrong = [name for name in _TEXTS if not isinstance(fields.get(name), str)]
    wrong += [name for name in _NUMBERS if not isinstance(fields.get(name), (int, float))]
    wrong += [name for name in ("scores", "settings", "versions") if not isinstance(fields.get(name), dict)]
    wrong += sorted(set(fields) - known)
    if wrong or not _are_numbers(fields["scores"].values()) or not _are_numbers(fields.get("examples") or []):
        raise InputError(f"{path} is damaged at {', '.join(wrong) or 'its numbers'}: delete it and measure again")
    fields["scores"] = {name: _or_nan(value) for name, value in fields["scores"].items()}
    if fields.get("examples") is not None:
        fields["examples"] = [_or_nan(value) for value in fields["examples"]]
    return Outcome(**fields)


def plain(value: Any) -> Any:
    """The same for JSON: dictionaries and lists all the way down, null for numbers that are not defined."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _file_name(task: str, key: str) -> str:
    return f"{_plain(task)}-{key[:16]}.json"


def _plain(name: str) -> str:
    """Safe as one part of a path; names that differ only elsewhere are told apart by the key."""
    return re.sub(r"[^\w.+-]+", "_", name).strip("._")[:100] or "_"


def _are_numbers(values: Any) -> bool:
    return all(value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)) for value in values)


def _or_null(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)
