"""Tasks of lm-evaluation-harness that are not in files: by its own definitions, on data that it downloads.

A task is named as the harness names it (``tydiqa_goldp``, ``gsm8k_cot`` ...), or by the path of a definition of its
kind (YAML), whose data may be local. Tasks that run what a model writes are refused: the harness would run it
unconfined.

This module knows nothing about how results are kept.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import logging
import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gritkit import GritModel
from gritkit.errors import GritkitError, InputError, MissingExtraError
from gritkit_eval.generation.local import LOCAL, Options
from gritkit_eval.generation.measure import Measured
from gritkit_eval.generation.rows import digest


class Harness:
    """The harness's tasks.

    Raises:
        MissingExtraError: where it is not installed.
    """

    def __init__(self) -> None:
        try:
            self._release = f"lm-eval {importlib.metadata.version('lm-eval')}"
        except importlib.metadata.PackageNotFoundError:
            raise MissingExtraError("lm-eval", "eval") from None

    def check(self, name: str) -> None:
        """Raises InputError for a task that the harness does not know."""
        if is_definition(name):
            return
        known = self._manager(name).all_tasks
        if name in known:
            return
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InputError(f"there is no task {name!r}, neither in files nor in {self._release}{hint}")

    def version(self, name: str) -> str:
        """Of the task's definition; its data have none."""
        return f"{self._release} {digest(Path(name))}" if is_definition(name) else self._release

    def measure(self, model: GritModel, name: str, options: Options) -> tuple[Measured, str]:
        """(what a task gave, the name of its main metric: the first that it lists).

        Raises:
            InputError: in one line, where its data cannot be had, or it runs code.
        """
        from lm_eval.evaluator import evaluate

        from gritkit_eval.generation.adapter import HarnessModel

        loaded = self._load(name)
        for task in loaded["tasks"].values():
            stated = task.get_config("num_fewshot")
            if stated is None or (options.num_fewshot is not None and stated != 0):
                task.set_config("num_fewshot", options.num_fewshot or 0)
            task.set_fewshot_seed(seed=options.seed)
        random.seed(options.seed)
        np.random.seed(options.seed)
        asked = HarnessModel(model, seed=options.seed)
        results = evaluate(
            asked,
            loaded,
            limit=options.limit,
            apply_chat_template=options.chat,
            fewshot_as_multiturn=True,
            bootstrap_iters=0,
        )
        measured, main = _measured(name, results)
        return replace(measured, scores=measured.scores | {"cut": float(asked.num_cut)}), main

    @staticmethod
    @cache
    def _manager_of(everything: bool) -> Any:
        """It reads some 15,000 definitions, which takes seconds; none of them for a definition of one's own."""
        from lm_eval.tasks import TaskManager

        return TaskManager(include_defaults=everything)

    def _manager(self, name: str) -> Any:
        return self._manager_of(not is_definition(name))

    def _load(self, name: str) -> Any:
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # of its many tries only the end is told, below
        try:
            loaded = self._manager(name).load([name])
        except GritkitError:
            raise
        except Exception as error:  # whatever the definition, its helpers, datasets or the network raise
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            advice = "give --shared, whose files have it" if name in LOCAL else "is the machine online?"
            raise InputError(f"the data of {name} cannot be had ({reason:.200}): {advice}") from None
        unsafe = [task for task, made in loaded["tasks"].items() if getattr(made, "UNSAFE_CODE", False)]
        if unsafe:
            raise InputError(f"{unsafe[0]} runs what the model writes, unconfined: only humaneval in files is run")
        return loaded


def is_definition(name: str) -> bool:
    """Whether it is a file that says what a task is; which other files that one reads cannot be told from it."""
    return name.endswith((".yaml", ".yml")) and Path(name).is_file()


def _measured(name: str, results: Mapping[str, Any]) -> tuple[Measured, str]:
    """One result for a task, a group, or (the mean of its members) a tag."""
    found: Mapping[str, Mapping[str, Any]] = results["results"]
    each = {task: _scores(values) for task, values in found.items()}
    members = {task: scores for task, scores in each.items() if task in results["samples"] and scores}
    if not members:
        raise InputError(f"{name} gave no figures: it has no metric that is a number")
    scores = each.get(name) or (next(iter(members.values())) if len(members) == 1 else _mean(list(members.values())))
    main = next(iter(scores))
    if len(members) > 1:
        scores = scores | {f"{main}:{task}": of[main] for task, of in members.items() if main in of}
    examples = [value for task in members for value in _examples(results["samples"][task], main)]
    is_mean = bool(examples) and math.isclose(sum(examples) / len(examples), scores[main], abs_tol=1e-9)
    return Measured(scores, examples if is_mean else [], []), main


def _scores(values: Mapping[str, Any]) -> dict[str, float]:
    """Metric -> value; a filter of answers stands behind a slash."""
    made = {}
    for key, value in values.items():
        metric, comma, kind = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, (int, float)):
            made[metric if kind == "none" else f"{metric}/{kind}"] = float(value)
    return made


def _mean(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of the metrics that all have."""
    found: dict[str, list[float]] = defaultdict(list)
    for scores in each:
        for metric, value in scores.items():
            found[metric].append(value)
    return {metric: sum(values) / len(values) for metric, values in found.items() if len(values) == len(each)}


def _examples(samples: Sequence[Mapping[str, Any]], main: str) -> list[float]:
    metric, _, kind = main.partition("/")
    of_kind = [sample.get(metric) for sample in samples if sample.get("filter") == (kind or "none")]
    good = all(isinstance(value, (int, float, np.number)) for value in of_kind)
    return [float(value) for value in of_kind if value is not None] if good else []
