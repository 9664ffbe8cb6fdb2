"""Tasks whose answer is written and then read off: word problems, BIG-Bench Hard, questions without documents.

Wordings, stop strings and how the answer is found in what was written are lm-evaluation-harness's (``gsm8k``,
``bbh_cot_fewshot``, ``nq_open``). MultiArith, which it lacks, is asked as GSM8K is.

This module knows nothing about models or where files lie.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gritkit import metrics
from gritkit.errors import RecordError
from gritkit_eval.generation.rows import Row
from gritkit_eval.generation.tasks import Grades, Prompt, WrittenExample

NOTHING = "[invalid]"
"""Stands for an answer that was not found."""

# -- word problems ----------------------------------------------------------------------------------------------------

MATH_STOP = ("Question:", "</s>", "<|im_end|>")
_LAST = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_STATED = re.compile(r"#### (\-?[0-9\.\,]+)")


def last_number(text: str) -> str:
    """The last thing in a text that looks like a number."""
    found = _LAST.findall(text)
    return next((part for part in found[-1] if part), NOTHING).strip() if found else NOTHING


def stated_number(text: str) -> str:
    """The number after the first ``####``, where GSM8K's own solutions state it."""
    found = _STATED.findall(text)
    return found[0].strip() if found else NOTHING


def plain_number(text: str) -> str:
    """Without thousands' commas, dollar signs, what stands before ``####``, and a last period."""
    for ignored in (",", r"\$", r"(?s).*#### ", r"\.$"):
        text = re.sub(ignored, "", text)
    return text.lower()


def word_problem(row: Row, shots: Sequence[Row]) -> WrittenExample:
    """A problem of GSM8K or MultiArith after solved ones of GSM8K."""
    solved = tuple((_problem(shot), str(shot["answer"])) for shot in shots)
    right = plain_number(row["answer"])

    def grade(text: str) -> Grades:
        return {
            "exact_match/strict-match": float(plain_number(stated_number(text)) == right),
            "exact_match/flexible-extract": float(plain_number(last_number(text)) == right),
        }

    return WrittenExample(prompt=Prompt(question=_problem(row), shots=solved), grade=grade)


def _problem(row: Row) -> str:
    return f"Question: {row['question']}\nAnswer:"


def solution(value: object, _: Mapping[str, object]) -> str | None:
    """What a GSM8K answer must be: worked out, with the number after ``####``."""
    return None if isinstance(value, str) and _STATED.search(value) else "has no '#### number' at its end"


# -- BIG-Bench Hard ---------------------------------------------------------------------------------------------------

HARD_STOP = ("</s>", "Q", "\n\n")
_ANSWER = re.compile(r"(?<=the answer is )(.*)(?=.)")
_THINK = "\nA: Let's think step by step.\n"


@dataclass(frozen=True)
class Worked:
    """What stands before the questions of one of the 27 tasks."""

    description: str
    shots: tuple[tuple[str, str], ...]


def worked(prompt: str) -> Worked:
    """From a file of Suzgun et al. 2022 (arXiv 2210.09261): a warning, a description, three worked examples.

    Raises:
        RecordError: without a place, where it has not that form.
    """
    description, *examples = prompt.split("-----\n", 1)[-1].split("\n\nQ: ")
    shots = []
    for example in examples:
        question, found, answer = example.partition(_THINK.rstrip())
        if not found or not answer.strip():
            raise RecordError(f"a worked example lacks {_THINK.strip()!r} or what follows it: {example!r:.60}")
        shots.append((f"Q: {question}{_THINK}", answer.strip()))
    if not shots:
        raise RecordError(f"no worked example in {prompt!r:.60}")
    return Worked(f"{description.strip()}\n\n", tuple(shots))


def hard_answer(text: str) -> str:
    """What follows "the answer is " on its line, without the last character, which should be a period."""
    found = _ANSWER.findall(text)
    return found[0].strip() if found else NOTHING


def hard_question(row: Row, before: Worked, num_shots: int) -> WrittenExample:
    """A question of BIG-Bench Hard after its task's worked examples."""
    prompt = Prompt(
        question=f"Q: {row['input']}{_THINK}",
        description=before.description,
        shots=before.shots[:num_shots],
        delimiter="",
    )
    right = str(row["target"])

    def grade(text: str) -> Grades:
        return {"exact_match": float(hard_answer(text) == right)}

    return WrittenExample(prompt=prompt, grade=grade, subset=row["task"])


# -- questions without documents --------------------------------------------------------------------------------------

OPEN_STOP = ("\n", ".", ",")


def open_question(row: Row, shots: Sequence[Row]) -> WrittenExample:
    """A question of Natural Questions, to be answered from memory; graded as SQuAD is."""
    right = list(row["answer"])
    prompt = Prompt(
        question=_open(row),
        description="Answer these questions:\n\n",
        shots=tuple((_open(shot), shot["answer"][0]) for shot in shots),
        separator="\n",
    )

    def grade(text: str) -> Grades:
        return {"exact_match": metrics.exact_match(text, right), "f1": metrics.token_f1(text, right)}

    return WrittenExample(prompt=prompt, grade=grade)


def _open(row: Row) -> str:
    return f"Q: {row['question']}?\nA:"
