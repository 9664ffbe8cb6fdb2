"""What a report says beside its figures: how they were made, what is missing, what was left out.

This module knows nothing about pages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gritkit_eval.outcome import Outcome
from gritkit_eval.report.gathered import Gathered, Run
from gritkit_eval.report.standings import Group
from gritkit_eval.report.words import count, listed, setting


@dataclass(frozen=True)
class Made:
    """How one run's outcomes of one kind were made."""

    run: str
    kind: str
    fingerprint: str
    num_tasks: int
    settings: str
    """Those that all its outcomes share."""
    versions: str
    machine: str
    dates: str
    seconds: float


def made_of(gathered: Gathered) -> list[Made]:
    """One line for each run and kind."""
    parts: dict[tuple[Run, str], list[Outcome]] = {}
    for (measure, run), one in gathered.cells.items():
        parts.setdefault((run, measure.kind), []).append(one)
    return [_made(run.name, kind, several) for (run, kind), several in parts.items()]


def _made(run: str, kind: str, several: Sequence[Outcome]) -> Made:
    shared = {
        name: value
        for name, value in several[0].settings.items()
        if value is not None
        and len({json.dumps(one.settings.get(name), sort_keys=True, default=str) for one in several}) == 1
    }
    versions: dict[str, dict[str, None]] = {}
    for one in several:
        for package, version in one.versions.items():
            versions.setdefault(str(package), {})[str(version)] = None
    days = sorted(one.made[:10] for one in several)
    return Made(
        run=run,
        kind=kind,
        fingerprint=several[0].fingerprint,
        num_tasks=len(several),
        settings=", ".join(setting(name, value) for name, value in shared.items()) or "-",
        versions=", ".join(f"{name} {' and '.join(found)}" for name, found in sorted(versions.items())) or "-",
        machine="; ".join(dict.fromkeys(one.machine for one in several)),
        dates=days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}",
        seconds=sum(one.seconds for one in several),
    )


def missing(gathered: Gathered, groups: Sequence[Group], shown: Callable[[str], str]) -> list[str]:
    """Sentences on tasks that only some runs have, and what averages therefore leave out; names through ``shown``."""
    notes = []
    for group in groups:
        lacking: dict[tuple[str, ...], list[Run]] = {}
        for run in group.runs:
            labels = tuple(shown(gathered.label(one)) for one in group.missing(run))
            if labels:
                lacking.setdefault(labels, []).append(run)
        for labels, runs in lacking.items():
            who = listed([shown(run.name) for run in runs])
            apart = " (fewer than half: no average)" if runs[0] not in group.averaged else ""
            lack = "lacks" if len(runs) == 1 else "lack"
            notes.append(f"{shown(group.name)}: {who} {lack} {count(len(labels), 'task')}{apart}: {listed([*labels])}.")
        if lacking and group.averaged:
            over = f"the {count(len(group.common), 'task')} that all others have" if group.common else "no task"
            notes.append(f"{shown(group.name)}: averages are over {over}.")
    return notes


def left_out(gathered: Gathered, shown: Callable[[str], str]) -> list[str]:
    """Sentences on outcomes that a later one replaces."""
    names = [f"{shown(one.task)} of {shown(one.model)} ({shown(one.made)})" for one in gathered.older]
    if not names:
        return []
    older = count(len(names), "older result")
    return [f"{older} of the same run and task left out, the latest stands: {listed(names)}."]
