"""The whole table of a report as plain values.

This module knows nothing about pages.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from gritkit_eval.report.gathered import Gathered, Run
from gritkit_eval.report.notes import left_out, made_of, missing
from gritkit_eval.report.standings import Group, ratio_to


def as_json(gathered: Gathered, groups: Sequence[Group], baseline: Run | None) -> dict[str, Any]:
    """The whole table as plain values; what is not defined is null."""
    found = {
        "runs": [run.name for run in gathered.runs],
        "baseline": None if baseline is None else baseline.name,
        "groups": [_group(gathered, group, baseline) for group in groups],
        "made": [vars(one) for one in made_of(gathered)],
        "missing": missing(gathered, groups, str),
        "left_out": left_out(gathered, str),
    }
    whole: dict[str, Any] = json.loads(json.dumps(found), parse_constant=lambda _: None)
    return whole


def _group(gathered: Gathered, group: Group, baseline: Run | None) -> dict[str, Any]:
    tasks, common = [], set(group.common)
    for measure in group.measures:
        cells = {run.name: gathered.cells[measure, run] for run in group.runs if (measure, run) in gathered.cells}
        tasks.append(
            {
                "task": measure.task,
                "label": gathered.label(measure),
                "version": measure.version,
                "metric": measure.metric,
                "averaged": measure in common,
                "score": {name: one.score for name, one in cells.items()},
                "scores": {name: dict(one.scores) for name, one in cells.items()},
                "settings": {name: dict(one.settings) for name, one in cells.items()},
                "made": {name: one.made for name, one in cells.items()},
            }
        )
    averages = {run.name: group.average(run) for run in group.runs}
    found: dict[str, Any] = {
        "kind": group.kind, "type": group.task_type, "asked": group.asked, "higher_is_better": group.rising,
        "num_tasks": len(group.measures), "num_averaged": len(group.common),
        "average": averages, "tasks": tasks,
    }  # fmt: skip
    if baseline is not None:
        against = group.average(baseline)
        found["ratio"] = {name: ratio_to(value, against) for name, value in averages.items()}
    return found
