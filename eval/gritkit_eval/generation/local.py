"""Tasks from files: which there are, where their data lies, and how their examples are made from it.

The folder is laid out as ``gen_eval/<task>/<split>.jsonl.gz`` and ``qa/nq_open/<split>.jsonl.gz``. Which examples
``limit`` keeps and which solved examples stand before one follow from the seed and the example's place in its file.

This module knows nothing about models, or how an answer is graded.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gritkit.errors import InputError, MissingExtraError, RecordError
from gritkit.files import resolve
from gritkit_eval.generation import answers, choices, code, instructions, rows, sandbox
from gritkit_eval.generation.sandbox import Limits
from gritkit_eval.generation.tasks import ChoiceExample, Prompt, Task

PROTOCOL = 2
"""Of all tasks here; a change makes results new ones."""
log = logging.getLogger("gritkit")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a task is made with."""

    num_fewshot: int | None = None
    """Solved examples in a prompt; None: as many as the task's protocol has."""
    limit: int | None = None
    seed: int = 0
    allow_code: bool = False
    unconfined: bool = False
    """Run programs also where this machine cannot confine them."""
    chat: bool = False


Loader = Callable[[Path, Options], Task]


@dataclass(frozen=True)
class Local:
    """A task in files."""

    file: str
    """Its examples; the task is there when this is."""
    load: Loader


def load_tasks(data: Path, names: Sequence[str] | None, options: Options) -> list[Task]:
    """The tasks of these names; without names all whose files are there and that this machine can grade.

    Raises:
        RecordError: naming file and line of every wrong value.
        InputError: for a name that is unknown, a file that is missing, code without ``allow_code``, or more solved
            examples than there are.
        MissingExtraError: for a task whose checkers are not installed.
    """
    data = resolve(data)
    if names is None:
        return [task for name in LOCAL if (task := _if_possible(name, data, options)) is not None]
    unknown = [name for name in names if name not in LOCAL]
    if unknown:
        raise InputError(f"no task in files is called {unknown[0]!r}; there are {', '.join(LOCAL)}")
    return [LOCAL[name].load(data, options) for name in names]


def _if_possible(name: str, data: Path, options: Options) -> Task | None:
    """A task, unless something is missing that nobody asked for by name; wrong data is an error all the same."""
    if not (data / LOCAL[name].file).is_file():
        return None
    try:
        return LOCAL[name].load(data, options)
    except RecordError:
        raise
    except (InputError, MissingExtraError) as error:
        log.warning("%s is left out: %s", name, error)
        return None


# -- choosing ---------------------------------------------------------------------------------------------------------


def kept(examples: Sequence[T], options: Options) -> list[T]:
    """``limit`` of the examples, the same ones for a seed, in their order."""
    if options.limit is None or options.limit >= len(examples):
        return list(examples)
    chosen = random.Random(options.seed).sample(range(len(examples)), options.limit)
    return [examples[index] for index in sorted(chosen)]


def drawn(number: int, pool: Sequence[T], count: int, options: Options, *, same: bool = False) -> list[T]:
    """Solved examples for the example of that number; with ``same`` the pool holds the example itself.

    Raises:
        InputError: for more than there are.
    """
    others = len(pool) - 1 if same else len(pool)
    if count > others:
        raise InputError(f"num_fewshot={count} and there are {others} solved examples")
    picked = random.Random(f"{options.seed} {number}").sample(range(others), count)
    return [pool[index + (same and index >= number)] for index in picked]


def version(paths: Sequence[Path], *more: object) -> str:
    """Of a task: its data, and what it does with them."""
    parts = [str(PROTOCOL), rows.digest(*paths), *map(str, more)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


# -- multiple choice --------------------------------------------------------------------------------------------------


def _choice_task(spec: choices.ChoiceSpec) -> Loader:
    def load(data: Path, options: Options) -> Task:
        count = _fixed(spec.name, options, 0) if spec.fixed else options.num_fewshot or 0
        paths = [data / spec.file]
        examples = [spec.ask(row) for row in rows.read(data / spec.file, spec.checks)]
        pool = examples
        if count and spec.shots is not None:
            paths.append(data / spec.shots)
            pool = [spec.ask(row) for row in rows.read(data / spec.shots, spec.checks)]
        firsts = _by_subset(pool)
        made, shortest = [], []
        for number, asked in kept(list(enumerate(examples)), options):
            if spec.first_shots:
                solved = firsts[asked.subset][:count]
                if len(solved) < count:
                    raise InputError(f"num_fewshot={count} and {asked.subset} has {len(solved)} solved examples")
            else:
                solved = drawn(number, pool, count, options, same=pool is examples)
            made.append(_choice_example(spec, asked, [one.solved for one in solved]))
            shortest.append(choices.shortest_is_right(asked))
        guessed = (_chance(made), sum(shortest) / len(shortest)) if spec.metric == "acc" else (None, None)
        return Task(
            name=spec.name, kind=spec.kind, version=version(paths), metric=spec.metric, choices=made,
            num_fewshot=count, chance=guessed[0], shortest=guessed[1],
        )  # fmt: skip

    return load


def _chance(examples: Sequence[ChoiceExample]) -> float:
    return sum(1 / len(example.answers) for example in examples) / len(examples)


def _by_subset(pool: Sequence[choices.Asked]) -> Mapping[str | None, list[choices.Asked]]:
    found: dict[str | None, list[choices.Asked]] = defaultdict(list)
    for asked in pool:
        found[asked.subset].append(asked)
    return found


def _choice_example(spec: choices.ChoiceSpec, asked: choices.Asked, solved: Sequence[tuple[str, str]]) -> ChoiceExample:
    prompts = tuple(
        Prompt(question=question, description=spec.description(asked), shots=tuple(solved))
        for question in asked.questions
    )
    return ChoiceExample(prompts=prompts, answers=asked.choices, grade=choices.grade(asked), subset=asked.subset)


# -- what is written --------------------------------------------------------------------------------------------------


def _word_problems(name: str, check: rows.Check) -> Loader:
    def load(data: Path, options: Options) -> Task:
        count = 5 if options.num_fewshot is None else options.num_fewshot
        file, train = data / f"gen_eval/{name}/test.jsonl.gz", data / "gen_eval/gsm8k/train.jsonl.gz"
        problems = rows.read(file, {"question": rows.text, "answer": check})
        pool = rows.read(train, {"question": rows.text, "answer": answers.solution}) if count else []
        made = [answers.word_problem(row, drawn(row.number, pool, count, options)) for row in kept(problems, options)]
        return Task(
            name=name, kind="mathematics", version=version([file, train] if count else [file]),
            metric="exact_match/strict-match", written=made, stop=answers.MATH_STOP, num_fewshot=count,
        )  # fmt: skip

    return load


def _hard(data: Path, options: Options) -> Task:
    count = 3 if options.num_fewshot is None else options.num_fewshot
    file, prompts = data / "gen_eval/bbh/test.jsonl.gz", data / "gen_eval/bbh/cot_prompts.jsonl.gz"
    before = {}
    for row in rows.read(prompts, {"task": rows.text, "prompt": rows.text}):
        try:
            before[row["task"]] = answers.worked(row["prompt"])
        except RecordError as error:
            raise RecordError(f"{prompts.name}:{row.line}: {error}") from None
    known = {"task": lambda value, _: None if value in before else "has no worked examples"}
    questions = rows.read(file, {**known, "input": rows.text, "target": rows.text})
    fewest = min(len(one.shots) for one in before.values())
    if count > fewest:
        raise InputError(f"num_fewshot={count} and BIG-Bench Hard has {fewest} worked examples")
    made = [answers.hard_question(row, before[row["task"]], count) for row in kept(questions, options)]
    return Task(
        name="bbh", kind="reasoning", version=version([file, prompts]), metric="exact_match", written=made,
        stop=answers.HARD_STOP, max_new_tokens=1024, num_fewshot=count,
    )  # fmt: skip


def _open_questions(data: Path, options: Options) -> Task:
    count = options.num_fewshot or 0
    file, train = data / "qa/nq_open/dev.jsonl.gz", data / "qa/nq_open/efficientqa_dev.jsonl.gz"
    checks = {"question": rows.text, "answer": rows.texts}
    pool = rows.read(train, checks) if count else []
    made = [
        answers.open_question(row, drawn(row.number, pool, count, options))
        for row in kept(rows.read(file, checks), options)
    ]
    return Task(
        name="nq_open", kind="knowledge", version=version([file, train] if count else [file]), metric="exact_match",
        written=made, stop=answers.OPEN_STOP, num_fewshot=count,
    )  # fmt: skip


def _functions(data: Path, options: Options) -> Task:
    if not options.allow_code:
        raise InputError("humaneval runs programs that the model writes: allow it with --allow-code")
    sandbox.check(unconfined=options.unconfined)
    _fixed("humaneval", options, 0)
    file = data / "gen_eval/humaneval/test.jsonl.gz"
    problems = rows.read(file, {"prompt": rows.text, "test": rows.text, "entry_point": rows.text})
    made = [code.problem(row, chat=options.chat, limits=Limits()) for row in kept(problems, options)]
    return Task(
        name="humaneval", kind="code", version=version([file]), metric="pass@1", written=made, stop=code.STOP,
        max_new_tokens=1024,
    )  # fmt: skip


def _instructions(data: Path, options: Options) -> Task:
    _fixed("ifeval", options, 0)
    utils = instructions.checkers()
    file = data / "gen_eval/ifeval/test.jsonl.gz"
    checks = {
        "key": lambda value, _: None if isinstance(value, int) else "is not a number",
        "prompt": rows.text, "instruction_id_list": instructions.ids, "kwargs": instructions.options,
    }  # fmt: skip
    without = instructions.unusable()
    usable, left_out = instructions.split(rows.read(file, checks), without)
    if left_out:
        log.warning("ifeval is measured without the prompts that ask for %s: nltk lacks punkt_tab", ", ".join(left_out))
    return Task(
        name="ifeval", kind="instructions", version=version([file], *without), metric="prompt_strict",
        written=[instructions.instructed(row, utils) for row in kept(usable, options)], max_new_tokens=1280,
        left_out=left_out, total=instructions.total,
    )  # fmt: skip


def _fixed(name: str, options: Options, count: int) -> int:
    """The number of solved examples of a task that has no choice."""
    if options.num_fewshot not in (None, count):
        log.warning("%s has a fixed prompt: num_fewshot=%d has no effect on it", name, options.num_fewshot)
    return count


def _written(name: str, load: Loader) -> dict[str, Local]:
    return {name: Local(f"gen_eval/{name}/test.jsonl.gz", load)}


LOCAL: dict[str, Local] = {
    **{spec.name: Local(spec.file, _choice_task(spec)) for spec in choices.SPECS},
    "nq_open": Local("qa/nq_open/dev.jsonl.gz", _open_questions),
    **_written("gsm8k", _word_problems("gsm8k", answers.solution)),
    **_written("multiarith", _word_problems("multiarith", rows.number)),
    **_written("bbh", _hard),
    **_written("ifeval", _instructions),
    **_written("humaneval", _functions),
}
"""All of them by name, in the order of reports."""
