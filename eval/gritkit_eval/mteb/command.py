"""What ``gritkit eval mteb`` does: settings -> tasks and contestants -> outcomes -> a board.

This module knows nothing about the command line, or how anything is measured.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gritkit.errors import InputError, MissingExtraError
from gritkit.files import resolve
from gritkit_eval.arguments import check_names, named
from gritkit_eval.mteb.baselines import BASELINES, from_model
from gritkit_eval.mteb.files import FOLDERS
from gritkit_eval.mteb.instructions import Overrides, load_overrides
from gritkit_eval.mteb.running import Contestant
from gritkit_eval.mteb.running import run as run_all
from gritkit_eval.mteb.table import Board, report
from gritkit_eval.outcome import Outcome, OutcomeFolder, plain

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of one run; the fields are the options."""

    models: tuple[str, ...] = ()
    """``folder`` or ``name=folder``."""
    baselines: tuple[str, ...] = ()
    data: Path | None = None
    tasks: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    benchmark: str | None = None
    dim: int | None = None
    max_length: int | None = None
    instructions: Path | None = None
    limit: int | None = None
    seed: int = 0
    output: Path | None = None
    ratio_to: str | None = None


@dataclass(frozen=True)
class Made:
    """What a run measured."""

    settings: Settings
    outcomes: Sequence[Outcome]
    board: Board
    baseline: str | None
    """What the others are divided by."""

    def section(self, command: str) -> str:
        """Of the results file; ``command`` makes the same."""
        versions = {name: version for outcome in self.outcomes for name, version in outcome.versions.items()}
        about = "Tasks of the hub." if self.settings.benchmark else "Tasks from files."
        if self.settings.limit is not None:
            about += (
                f" At most {self.settings.limit} examples a task by seed {self.settings.seed} (pairs, texts, queries; "
                "ten times as many texts to cluster, or pairs of all languages); of a corpus all passages judged for "
                "its queries and at most four times as many others, of a class eight times the examples of a draw."
            )
        return report(self.board, self.baseline, command=command, about=about, versions=versions)


def run(settings: Settings, progress: Callable[[str], None]) -> Made:
    """Measure, or find what was measured before in the output folder.

    Raises:
        InputError: for settings that contradict each other, or name what there is not. RecordError: for bad data.
    """
    check_names(settings.models, settings.baselines)
    names = [*settings.baselines, *(named(given)[0] for given in settings.models)]
    if not names:
        raise InputError("there is nothing to measure: give a model (-m FOLDER) or a baseline (--baseline minilm)")
    for unknown in (name for name in settings.baselines if name not in BASELINES):
        raise InputError(f"no baseline is called {unknown!r}; there are {', '.join(BASELINES)}")
    if settings.ratio_to is not None and settings.ratio_to not in names:
        raise InputError(f"ratio_to={settings.ratio_to!r} is none of {', '.join(names)}")
    tasks = _tasks(settings)
    known = {task.metadata.name for task in tasks} | {task.metadata.type for task in tasks}
    overrides = load_overrides(settings.instructions, known) if settings.instructions else None
    output = resolve(settings.output) if settings.output else None
    outcomes = run_all(
        _contestants(settings, overrides), tasks, outcomes=OutcomeFolder(output) if output else None, results=output,
        progress=progress,
    )  # fmt: skip
    board = Board.of(outcomes)
    return Made(settings, outcomes, board, settings.ratio_to or _complete(board, settings.baselines))


def as_json(made: Made) -> dict[str, Any]:
    """Averages, ratios and all outcomes; what is not defined is null."""
    board = made.board
    result = {
        "averages": {model: board.summary(model) for model in board.models},
        "baseline": made.baseline,
        "ratios": {model: board.ratios(model, made.baseline) for model in board.models} if made.baseline else {},
        "outcomes": [dataclasses.asdict(outcome) for outcome in made.outcomes],
    }
    found: dict[str, Any] = plain(result)
    return found


def _tasks(settings: Settings) -> list[AbsTask]:
    in_files = [name for name in settings.tasks if name.partition(".")[0] in FOLDERS]
    on_hub = [name for name in settings.tasks if name not in in_files]
    if (settings.benchmark or on_hub) and (settings.types or settings.limit is not None):
        raise InputError("--types and --limit are for tasks in files, not for those of the hub: leave them out")
    tasks = _from_hub(settings.benchmark, on_hub) if settings.benchmark or on_hub else []
    if in_files or not tasks:
        if settings.data is None:
            raise InputError("no data: give --data FOLDER (or --shared, or GRITKIT_SHARED), --tasks or --benchmark")
        from gritkit_eval.mteb.local import load_tasks

        tasks += load_tasks(settings.data, in_files, settings.types, settings.limit, settings.seed)
    return tasks


def _from_hub(benchmark: str | None, names: Sequence[str]) -> list[AbsTask]:
    try:
        import mteb
    except ImportError:
        raise MissingExtraError("mteb", "eval") from None
    try:
        found = list(mteb.get_benchmark(benchmark).tasks) if benchmark else []
        return found + [mteb.get_task(name) for name in names]
    except KeyError as error:
        raise InputError(f"mteb does not know it: {error.args[0]}") from None


def _contestants(settings: Settings, overrides: Overrides | None) -> Iterator[Contestant]:
    """One at a time."""
    from gritkit import GritModel

    for name in settings.baselines:
        yield BASELINES[name]()
    for given in settings.models:
        name, source = named(given)
        model = GritModel.from_pretrained(source)
        yield from_model(name, model, dim=settings.dim, max_length=settings.max_length, instructions=overrides)


def _complete(board: Board, baselines: Sequence[str]) -> str | None:
    """The first baseline that was measured on everything."""
    return next((name for name in baselines if not math.isnan(board.over_tasks(name))), None)
