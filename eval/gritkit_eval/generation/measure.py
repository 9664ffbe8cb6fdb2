"""A task answered by a model: prompts to ids, choices scored, texts written, all graded.

This module knows nothing about where tasks or models come from, or how results are kept.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm

from gritkit import GritModel
from gritkit.errors import InputError
from gritkit.generation.decoder import Request
from gritkit.generation.params import Finished
from gritkit_eval.generation.scoring import Pair, context_limit, score_pairs
from gritkit_eval.generation.tasks import ChoiceExample, Grades, Prompt, Task, means
from gritkit_eval.generation.texts import Texts, greedy

log = logging.getLogger("gritkit")


@dataclass(frozen=True)
class Measured:
    """What a task gave."""

    scores: dict[str, float]
    examples: list[float]
    """The main metric of every example."""
    answers: list[str]
    """What the model wrote; empty for choices."""


def measure(model: GritModel, task: Task, *, chat: bool, progress: bool = False) -> Measured:
    """Every example of a task; ``chat`` puts prompts through the checkpoint's chat template.

    Raises:
        InputError: naming the task, for a prompt or an answer that the model cannot hold, or a missing template.
    """
    texts = Texts(model.tokenizer)
    written: list[str] = []
    num_cut = 0
    with _bar(progress, task) as bar:
        try:
            if task.choices:
                grades, num_cut = _choose(model, texts, task, chat, bar)
            else:
                written, num_cut = _write(model, texts, task, chat, bar)
                grades = [one.grade(text) for one, text in zip(task.written, written, strict=True)]
        except InputError as error:
            raise InputError(f"{task.name}: {error}") from None
    scores = dict(task.total(grades)) | {"cut": float(num_cut)}
    guessed = {"chance": task.chance, "shortest": task.shortest}
    scores |= {name: value for name, value in guessed.items() if value is not None}
    return Measured(scores | _by_subset(task, grades), [grade[task.metric] for grade in grades], written)


def _context(texts: Texts, prompt: Prompt, chat: bool) -> str:
    return texts.chat(prompt.messages()) + prompt.opening if chat else prompt.text()


def _choose(model: GritModel, texts: Texts, task: Task, chat: bool, bar: Any) -> tuple[list[Grades], int]:
    """(grades, how many prompts lost their beginning)."""
    limit = context_limit(model)
    of_example = [_pairs(texts, example, chat) for example in task.choices]
    fits = [all(len(continuation) <= limit for _, continuation in pairs) for pairs in of_example]
    pairs = [pair for held, its in zip(fits, of_example, strict=True) if held for pair in its]
    scored = iter(score_pairs(model, pairs, bar.update))
    if not all(fits):
        log.warning(
            "%s: %d of the examples do not fit the model's context and count as wrong", task.name, fits.count(False)
        )
    grades = [
        example.grade([next(scored).logprob for _ in example.answers])
        if held
        else dict.fromkeys(_metrics(example), 0.0)
        for held, example in zip(fits, task.choices, strict=True)
    ]
    return grades, sum(any(len(before) + len(after) - 1 > limit for before, after in its) for its in of_example)


def _pairs(texts: Texts, example: ChoiceExample, chat: bool) -> list[Pair]:
    """Of every choice; in a chat the answer begins at once, after what opens it."""
    contexts = {prompt: _context(texts, prompt, chat) for prompt in set(example.prompts)}
    return [
        texts.pair(contexts[prompt], answer if chat else f"{prompt.delimiter}{answer}")
        for prompt, answer in zip(example.prompts, example.answers, strict=True)
    ]


def _metrics(example: ChoiceExample) -> list[str]:
    return list(example.grade([0.0] * len(example.answers)))


def _write(model: GritModel, texts: Texts, task: Task, chat: bool, bar: Any) -> tuple[list[str], int]:
    """(texts, how many prompts lost their beginning)."""
    limit, num_cut = context_limit(model), 0
    params = greedy(min(task.max_new_tokens, limit // 2), task.stop)
    if params.max_new_tokens < task.max_new_tokens:
        log.warning("%s: answers have %d tokens instead of %d, half of the model's context", task.name,
                    params.max_new_tokens, task.max_new_tokens)  # fmt: skip
    requests = []
    for example in task.written:
        context = _context(texts, example.prompt, chat)
        prompt, cut = texts.prompt(context, params.max_new_tokens, limit)
        num_cut += cut
        requests.append(Request(prompt, params))
    made = [""] * len(requests)
    for event in model.stream_requests(requests):
        if isinstance(event, Finished):
            made[event.row] = texts.written(event.completion.token_ids, task.stop)
            bar.update(1)
    return made, num_cut


def _by_subset(task: Task, grades: Sequence[Grades]) -> dict[str, float]:
    """The main metric of every subset as ``metric:subset``, and the mean over subsets as ``macro``."""
    found: dict[str, list[Grades]] = defaultdict(list)
    for subset, grade in zip(task.subsets, grades, strict=True):
        if subset is not None:
            found[subset].append({task.metric: grade[task.metric]})
    if not found:
        return {}
    each = {subset: means(of)[task.metric] for subset, of in sorted(found.items())}
    return {"macro": sum(each.values()) / len(each)} | {f"{task.metric}:{name}": value for name, value in each.items()}


def _bar(progress: bool, task: Task) -> Any:
    total = sum(len(one.answers) for one in task.choices) + len(task.written)
    return tqdm(total=total, desc=task.name, disable=None if progress else True, delay=1)
