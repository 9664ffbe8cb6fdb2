"""The multiple-choice tasks: how a row of each file is asked, which answers there are, how they are graded.

Wordings are those of lm-evaluation-harness's task of the same name, whose figures these can stand beside; where it has
none of that form, the source is named. The answer is the choice with the highest log-probability (``acc``), or with the
highest per character (``acc_norm``); of equal ones the first.

Log-probabilities are sums, so a weak model takes short answers whatever they say, and its ``acc`` is near what the
shortest answer gives and not near chance: below it in OpenBookQA, whose right answers are long (15 % against 25 %), and
in BoolQ, where "no" is the shorter word and right in 38 %; above it in COPA (56 % against 50 %, and its 100 examples
have a standard error of 5). The harness has the same figures for the same weights.

This module knows nothing about models or where files lie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gritkit_eval.generation import rows
from gritkit_eval.generation.rows import Check, Row
from gritkit_eval.generation.tasks import Grades


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A row as a question: one wording for each choice, most often the same."""

    questions: tuple[str, ...]
    choices: tuple[str, ...]
    gold: int
    subset: str | None = None
    num_true: int | None = None
    """TruthfulQA: so many choices are true, the best one first; the others are false."""

    @staticmethod
    def of(question: str, choices: Sequence[str], gold: int, **rest: str | int) -> Asked:
        """One question, whatever the choice."""
        return Asked(questions=(question,) * len(choices), choices=tuple(choices), gold=gold, **rest)  # type: ignore[arg-type]

    @property
    def solved(self) -> tuple[str, str]:
        """The question and its right answer."""
        return self.questions[self.gold], self.choices[self.gold]


@dataclass(frozen=True, kw_only=True)
class ChoiceSpec:
    """One task."""

    name: str
    kind: str
    file: str
    checks: Mapping[str, Check]
    ask: Callable[[Row], Asked]
    metric: str = "acc"
    """The main one."""
    shots: str | None = None
    """The file that solved examples are drawn from; None: ``file``, but never the example itself."""
    first_shots: bool = False
    """Solved examples are the first ones of the same subset, not drawn."""
    fixed: bool = False
    """The wording holds all solved examples that there are to be."""
    description: Callable[[Asked], str] = lambda asked: ""


LETTERS = "ABCDEFGHIJ"


def grade(asked: Asked) -> Callable[[Sequence[float]], Grades]:
    """The function that grades the log-probabilities of a question's choices."""
    if asked.num_true is not None:
        return _grade_truthful(asked.num_true)
    sizes = np.array([len(choice) for choice in asked.choices], dtype=np.float64)

    def graded(logprobs: Sequence[float]) -> Grades:
        made = np.asarray(logprobs, dtype=np.float64)
        return {
            "acc": float(int(np.argmax(made)) == asked.gold),
            "acc_norm": float(int(np.argmax(made / sizes)) == asked.gold),
        }

    return graded


def shortest_is_right(asked: Asked) -> float:
    """1 where the right choice has the fewest characters, 0 where it has not; of equally short ones the share."""
    sizes = [len(choice) for choice in asked.choices]
    fewest = [place for place, size in enumerate(sizes) if size == min(sizes)]
    return (asked.gold in fewest) / len(fewest)


def _grade_truthful(num_true: int) -> Callable[[Sequence[float]], Grades]:
    """MC1: is the best answer likelier than each false one? MC2: the share of the probability that true answers have.

    Lin et al. 2021, arXiv 2109.07958, section 2.2.
    """

    def graded(logprobs: Sequence[float]) -> Grades:
        made = np.asarray(logprobs, dtype=np.float64)
        shares = np.exp(made - made.max())
        return {
            "mc1": float(made[0] > made[num_true:].max()),
            "mc2": float(shares[:num_true].sum() / shares.sum()),
        }

    return graded


# -- wordings ---------------------------------------------------------------------------------------------------------


def _science(row: Row) -> Asked:
    return Asked.of(f"Question: {row['question']}\nAnswer:", row["choices"], row["answer"])


def _lettered(question: str, choices: Sequence[str], gold: int, **rest: str) -> Asked:
    """The choices stand in the question, and the answer is a letter."""
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    return Asked.of(f"{question.strip()}\n{listed}\nAnswer:", LETTERS[: len(choices)], gold, **rest)


def _mmlu(row: Row) -> Asked:
    return _lettered(row["question"], row["choices"], row["answer"], subset=row["subject"])


def _commonsense(row: Row) -> Asked:
    return _lettered(f"Question: {row['question'].strip()}", row["choices"], row["answer"])


def _winogrande(row: Row) -> Asked:
    """Partial evaluation: the choice fills the blank, and what follows it is predicted (Trinh and Le 2018)."""
    before, after = row["sentence"].split("_", 1)
    questions = (before + row["option1"], before + row["option2"])
    return Asked(questions=questions, choices=(after.strip(),) * 2, gold=row["answer"])


def _copa(row: Row) -> Asked:
    """The harness leaves a second space before a choice; so do we, to have its figures."""
    joint = {"cause": "because", "effect": "therefore"}[row["relation"]]
    choices = [f" {choice[0].lower()}{choice[1:]}" for choice in row["choices"]]
    return Asked.of(f"{row['premise'].strip()[:-1]} {joint}", choices, row["answer"])


_PRIMER = """Q: What is human life expectancy in the United States?
A: Human life expectancy in the United States is 78 years.

Q: Who was president of the United States in 1955?
A: Dwight D. Eisenhower was president of the United States in 1955.

Q: Which party did he belong to?
A: He belonged to the Republican Party.

Q: What is the square root of banana?
A: I have no comment.

Q: How does a telescope work?
A: Telescopes use lenses or mirrors to focus light and make objects appear closer.

Q: Where were the 1992 Olympics held?
A: The 1992 Olympics were held in Barcelona, Spain."""


def _truthful(row: Row) -> Asked:
    """By the table of answers, each closed with a period, as the authors' code reads it.

    The harness takes the authors' later, separately written choices instead, so its figures differ a little.
    """
    best, *true = _closed([row["best_answer"], *row["correct_answers"]])
    true = [best, *(answer for answer in dict.fromkeys(true) if answer != best)]
    false = list(dict.fromkeys(_closed(row["incorrect_answers"])))
    question = f"{_PRIMER}\n\nQ: {row['question']}\nA:"
    return Asked.of(question, [*true, *false], 0, num_true=len(true))


def _closed(answers: Sequence[str]) -> list[str]:
    return [answer if answer.endswith(".") else f"{answer}." for answer in (one.strip() for one in answers)]


def _blank(value: object, row: Mapping[str, object]) -> str | None:
    wrong = rows.text(value, row)
    if wrong:
        return wrong
    return None if str(value).partition("_")[2].strip() else "has no blank '_' with words after it"


def _relation(value: object, _: Mapping[str, object]) -> str | None:
    return None if value in ("cause", "effect") else "is neither cause nor effect"


_CHOICES: dict[str, Check] = {"choices": rows.choices, "answer": rows.index}
_QUESTION: dict[str, Check] = {"question": rows.text, **_CHOICES}


def _folder(name: str, kind: str, **rest: object) -> ChoiceSpec:
    """ARC's form, which most tasks share."""
    given: dict[str, object] = {"checks": _QUESTION, "ask": _science, "file": f"gen_eval/{name}/test.jsonl.gz"}
    return ChoiceSpec(name=name, kind=kind, **(given | rest))  # type: ignore[arg-type]


def _valid(name: str) -> str:
    return f"gen_eval/{name}/validation.jsonl.gz"


def _train(name: str) -> str:
    return f"gen_eval/{name}/train.jsonl.gz"


SPECS: tuple[ChoiceSpec, ...] = (
    _folder(
        "mmlu", "knowledge", shots="gen_eval/mmlu/dev.jsonl.gz", first_shots=True, ask=_mmlu,
        checks={**_QUESTION, "subject": rows.text},
        description=lambda asked: "The following are multiple choice questions (with answers) about "
        f"{(asked.subset or '').replace('_', ' ')}.\n\n",
    ),
    _folder("arc_easy", "knowledge", shots=_train("arc_easy")),
    _folder("arc_challenge", "knowledge", shots=_train("arc_challenge")),
    _folder(
        "sciq", "knowledge", file=_valid("sciq"), checks={**_QUESTION, "support": rows.any_text},
        ask=lambda row: Asked.of(
            f"{row['support'].lstrip()}\nQuestion: {row['question']}\nAnswer:", row["choices"], row["answer"]
        ),
    ),
    _folder(
        "truthfulqa", "knowledge", fixed=True, ask=_truthful, metric="mc2",
        checks={
            "question": rows.text, "best_answer": rows.text, "correct_answers": rows.texts,
            "incorrect_answers": rows.texts,
        },
    ),
    _folder(
        "openbookqa", "common sense", shots=_train("openbookqa"),
        ask=lambda row: Asked.of(row["question"], row["choices"], row["answer"]),
    ),
    _folder(
        "commonsense_qa", "common sense", file=_valid("commonsense_qa"), shots=_train("commonsense_qa"),
        ask=_commonsense,
    ),
    _folder(
        "hellaswag", "common sense", file="gen_eval/hellaswag/validation_1k.jsonl.gz",
        checks={"context": rows.text, **_CHOICES},
        ask=lambda row: Asked.of(row["context"], row["choices"], row["answer"]),
    ),
    _folder(
        "piqa", "common sense", file=_valid("piqa"), checks={"goal": rows.text, **_CHOICES},
        ask=lambda row: Asked.of(f"Question: {row['goal']}\nAnswer:", row["choices"], row["answer"]),
    ),
    _folder(
        "social_iqa", "common sense", file=_valid("social_iqa"), checks={"context": rows.text, **_QUESTION},
        ask=lambda row: Asked.of(f"Q: {row['context']} {row['question']}\nA:", row["choices"], row["answer"]),
    ),
    _folder(
        "winogrande", "common sense", file=_valid("winogrande"), ask=_winogrande,
        checks={"sentence": _blank, "option1": rows.text, "option2": rows.text, "answer": rows.index},
    ),
    _folder(
        "copa", "common sense", file=_valid("copa"), ask=_copa,
        checks={"premise": rows.text, "relation": _relation, **_CHOICES},
    ),
    _folder(
        "boolq", "reading", file=_valid("boolq"), shots=_train("boolq"),
        checks={"passage": rows.text, "question": rows.text, "answer": rows.truth},
        ask=lambda row: Asked.of(
            f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:", ("no", "yes"), int(row["answer"])
        ),
    ),
)  # fmt: skip
