"""One run: models, tasks and texts in, an outcome each out; what an earlier run measured is not measured again.

This module knows nothing about how a task is answered, or tables.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gritkit import GritModel
from gritkit.errors import InputError
from gritkit.files import resolve
from gritkit_eval.arguments import check_names, listed, named
from gritkit_eval.generation import sandbox
from gritkit_eval.generation.hub import Harness, is_definition
from gritkit_eval.generation.local import LOCAL, Options, load_tasks
from gritkit_eval.generation.measure import Measured, measure
from gritkit_eval.generation.perplexity import predict, read_texts, spans
from gritkit_eval.generation.rows import digest
from gritkit_eval.generation.tasks import Task
from gritkit_eval.outcome import Outcome, OutcomeFolder, versions_of

KIND = "generation"
PERPLEXITY = "perplexity"
"""The task type of texts that are predicted; its metrics are better when they are lower."""
_PACKAGES = ("gritkit", "torch", "transformers")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run."""

    models: tuple[str, ...]
    """Folders or hub ids, each optionally with a name before it: ``name=folder``."""
    tasks: tuple[str, ...] | None = None
    """Names; None: all that are in the folder, unless only texts are given."""
    shared: Path | None = None
    """The folder that holds ``data/``."""
    perplexity: tuple[Path, ...] = ()
    window: int | None = None
    """Tokens that a prediction of a text looks back on, at most."""
    output: Path | None = None
    options: Options = field(default_factory=Options)

    def __post_init__(self) -> None:
        if not self.models:
            raise InputError("no model: give -m FOLDER")
        if self.tasks is None and self.shared is None and not self.perplexity:
            raise InputError("nothing to measure: give --shared FOLDER, --tasks NAMES or --perplexity FILE")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is measured on every model."""

    task: str
    task_type: str
    version: str
    settings: dict[str, Any]
    run: Callable[[GritModel], tuple[Measured, str]]
    """The scores, and the name of the main one."""
    packages: tuple[str, ...] = ()
    resumes: bool = True
    """Whether an earlier outcome stands for a new one: False where what it depends on cannot all be named."""


def run(settings: Settings, *, progress: bool = False) -> list[Outcome]:
    """Measure everything, model by model.

    Raises:
        RecordError: naming file and line of wrong data, before any model is loaded.
        InputError: for an unknown task, a file that is missing, a model that cannot hold a prompt.
    """
    check_names(settings.models)
    jobs = [*_task_jobs(settings, progress), *_text_jobs(settings, progress)]
    if not jobs:
        raise InputError(f"no task's files are in {settings.shared}: give --tasks or another --shared")
    folder = OutcomeFolder(resolve(settings.output)) if settings.output is not None else None
    outcomes = []
    for given in settings.models:
        name, source = named(given)
        model = GritModel.from_pretrained(source)
        for job in jobs:
            outcomes.append(_outcome(job, name, model, folder))
    return outcomes


def _outcome(job: Job, name: str, model: GritModel, folder: OutcomeFolder | None) -> Outcome:
    settings = job.settings | {"prompts": _prompts_of(model, chat=bool(job.settings.get("chat")))}
    if folder is not None and job.resumes:
        found = folder.find(KIND, job.task, job.version, model.fingerprint, settings)
        if found is not None:
            return replace(found, model=name)
    start = time.perf_counter()
    measured, metric = job.run(model)
    outcome = Outcome(
        kind=KIND, task=job.task, task_type=job.task_type, version=job.version, model=name,
        fingerprint=model.fingerprint, metric=metric, scores=measured.scores, seconds=time.perf_counter() - start,
        examples=measured.examples or None, settings=settings, versions=versions_of(*_PACKAGES, *job.packages),
    )  # fmt: skip
    if folder is not None:
        folder.save(outcome)
    return outcome


def _prompts_of(model: GritModel, *, chat: bool) -> str:
    """Digest of what makes prompts and is not in the fingerprint: the chat template, and which tokens begin and end."""
    made = [model.tokenizer.chat_template if chat else None, model.tokenizer.bos_token_id, model.tokenizer.eos_token_id]
    return hashlib.blake2b(json.dumps(made, default=str).encode(), digest_size=8).hexdigest()


# -- what there is to do ----------------------------------------------------------------------------------------------


def _task_jobs(settings: Settings, progress: bool) -> list[Job]:
    names = settings.tasks
    if names is None and settings.shared is None:
        return []
    if names is not None and len(set(names)) < len(names):
        raise InputError(f"a task is named twice: {', '.join(names)}")
    in_files = None if names is None else [name for name in names if _is_local(name, settings.shared)]
    jobs = {}
    if settings.shared is not None and in_files != []:
        for task in load_tasks(settings.shared / "data", in_files, settings.options):
            jobs[task.name] = _local_job(task, settings.options, progress)
    elsewhere = [name for name in names or () if name not in (in_files or ())]
    if elsewhere:
        harness = Harness()
        for name in elsewhere:
            harness.check(name)
            jobs[name] = _harness_job(harness, name, settings.options)
    return [jobs[name] for name in names] if names is not None else list(jobs.values())


def _is_local(name: str, shared: Path | None) -> bool:
    return shared is not None and name in LOCAL and (resolve(shared) / "data" / LOCAL[name].file).is_file()


def _local_job(task: Task, options: Options, progress: bool) -> Job:
    settings = _settings(options) | {"num_fewshot": task.num_fewshot}
    if task.kind == "code" and sandbox.missing():
        settings["walls_missing"] = ", ".join(sandbox.missing())
    if task.left_out:
        settings["left_out"] = dict(sorted(task.left_out.items()))
    return Job(
        task=task.name, task_type=task.kind, version=task.version, settings=settings,
        run=lambda model: (measure(model, task, chat=options.chat, progress=progress), task.metric),
        packages=("lm-eval", "nltk", "langdetect") if task.name == "ifeval" else (),
    )  # fmt: skip


def _harness_job(harness: Harness, name: str, options: Options) -> Job:
    return Job(
        task=Path(name).stem, task_type="lm-eval", version=harness.version(name),
        settings=_settings(options) | {"num_fewshot": options.num_fewshot},
        run=lambda model: harness.measure(model, name, options), packages=("lm-eval", "datasets"),
        resumes=not is_definition(name),
    )  # fmt: skip


def _settings(options: Options) -> dict[str, Any]:
    return {"limit": options.limit, "seed": options.seed, "chat": options.chat}


def _text_jobs(settings: Settings, progress: bool) -> list[Job]:
    jobs = {job.task: job for job in (_text_job(path, settings, progress) for path in settings.perplexity)}
    if len(jobs) < len(settings.perplexity):
        raise InputError("two files of --perplexity have the same name in folders of the same name: rename one")
    return list(jobs.values())


def _text_job(path: Path, settings: Settings, progress: bool) -> Job:
    limit = settings.options.limit
    texts = read_texts(path, limit)

    def predicted(model: GritModel) -> tuple[Measured, str]:
        made = predict(model, texts, window=settings.window, progress=progress)
        window, stride = spans(model, settings.window)
        looked = {"window": float(window), "stride": float(stride)}
        return Measured(made.scores | looked, [], []), "bits_per_byte"

    path = resolve(path)
    return Job(
        task=f"perplexity of {path.parent.name}/{path.name}", task_type=PERPLEXITY, version=digest(path),
        settings={"limit": limit, "window": settings.window}, run=predicted,
    )  # fmt: skip


def split_names(given: str | None) -> tuple[str, ...] | None:
    """Task names by comma. Raises InputError for a list without one."""
    names = None if given is None else listed(given)
    if names == ():
        raise InputError(f"tasks={given!r} names no task")
    return names
