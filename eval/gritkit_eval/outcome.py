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
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gritkit.errors import InputError
from gritkit.files import write_atomic
from gritkit_eval.bench.report import machine

FORMAT = 1
PART = "part"
"""The kind of outcomes that others sum up: kept to go on from, left out of reports."""
_LONGEST = 100
"""Bytes of a name in a path; file systems take 255, and the key stands beside it."""
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
        """What an earlier run measured of just this, whatever the model was called; a file whose content belongs under
        another name is none. Raises InputError for a file that is not whole."""
        key = key_of(kind, task, version, fingerprint, settings)
        found = map(load, sorted((self.folder / kind).glob(f"*/{file_name(task, key)}")))
        return next((one for one in found if one.key == key), None)

    def save(self, outcome: Outcome) -> Path:
        """Write it whole or not at all."""
        path = self.folder / outcome.kind / _plain(outcome.model) / file_name(outcome.task, outcome.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        fields = {"format": FORMAT, **dataclasses.asdict(outcome)}
        fields["scores"] = {name: _or_null(value) for name, value in outcome.scores.items()}
        if outcome.examples is not None:
            fields["examples"] = [_or_null(value) for value in outcome.examples]
        text = json.dumps(fields, indent=1, allow_nan=False, ensure_ascii=False)
        write_atomic(path, text.encode("utf-8", "backslashreplace") + b"\n")  # half characters as JSON writes them
        return path

    def all(self) -> list[Outcome]:
        """Every outcome, in the order of the file names. JSON of other programs is passed over.

        Raises:
            InputError: for a folder that does not exist, or an outcome that is damaged or of a later format.
        """
        if not self.folder.is_dir():
            raise InputError(f"no folder of results: {self.folder}")
        read = ((path, _json(path)) for path in sorted(self.folder.glob("*/*/*.json")))
        return [
            _outcome(path, given) for path, given in read if isinstance(given, dict) and {"format", "kind"} & set(given)
        ]


def load(path: Path) -> Outcome:
    """Raises InputError, naming the file, for one that is not an outcome or is of a later format."""
    return _outcome(path, _json(path))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_int=_whole)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read the results in {path}: {error}") from None


def _whole(digits: str) -> int:
    if abs(number := int(digits)) > sys.float_info.max:
        raise ValueError(f"the number {digits:.20} ... is too large")
    return number


def _outcome(path: Path, given: Any) -> Outcome:
    if not isinstance(given, dict) or given.get("format") != FORMAT:
        found = given.get("format") if isinstance(given, dict) else None
        raise InputError(f"{path} is not a result of format {FORMAT} but of {found!r:.40}: measure again")
    known = {one.name for one in dataclasses.fields(Outcome)}
    fields = {name: value for name, value in given.items() if name != "format"}
    wrong = [name for name in _TEXTS if not isinstance(fields.get(name), str)]
    wrong += [name for name in _NUMBERS if not _is_number(fields.get(name))]
    wrong += [name for name in ("scores", "settings", "versions") if not isinstance(fields.get(name), dict)]
    wrong += [] if isinstance(fields.get("examples", []), (list, type(None))) else ["examples"]
    wrong += sorted(name[:40] for name in set(fields) - known)
    numbers = [] if wrong else [*fields["scores"].values(), *(fields.get("examples") or [])]
    if wrong or not all(value is None or _is_number(value) for value in numbers):
        raise InputError(f"{path} is damaged at {', '.join(wrong) or 'its numbers'}: delete it and measure again")
    fields["scores"] = {name: _or_nan(value) for name, value in fields["scores"].items()}
    if fields.get("examples") is not None:
        fields["examples"] = [_or_nan(value) for value in fields["examples"]]
    try:
        return Outcome(**fields)
    except InputError as error:
        raise InputError(f"{path} is damaged: {error}") from None


def plain(value: Any) -> Any:
    """The same for JSON: dictionaries and lists all the way down, null for numbers that are not defined."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def file_name(task: str, key: str) -> str:
    """Of what belongs to one outcome."""
    return f"{_plain(task)}-{key[:16]}.json"


def _plain(name: str) -> str:
    """Safe as one part of a path; names that differ only elsewhere are told apart by the key."""
    whole = re.sub(r"[^\w.+-]+", "_", name).strip("._")
    return whole.encode(errors="ignore")[:_LONGEST].decode(errors="ignore") or "_"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _or_null(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)
