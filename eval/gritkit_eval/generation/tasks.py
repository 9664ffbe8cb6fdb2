"""What a task is: prompts, what answers them, and how an answer is graded.

    Prompt -> text (or chat messages) -> log-probabilities of the choices, or what the model writes -> grades -> scores

A task is plain data with a few functions in it; where it came from (a file, a table of definitions) and who answers it
are the business of others. This module knows nothing about models, files or tokenizers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from gritkit.prompts import Message

Grades = Mapping[str, float]
"""Metric -> value, of one example."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What a model is asked, with solved examples before it."""

    question: str
    description: str = ""
    shots: tuple[tuple[str, str], ...] = ()
    """(question, answer) of the solved examples."""
    delimiter: str = " "
    """Between a question and its answer."""
    separator: str = "\n\n"
    """After a solved example."""
    opening: str = ""
    """In a chat, how the answer begins."""

    def text(self) -> str:
        """As one text, up to the answer and without the delimiter before it."""
        solved = "".join(f"{q}{self.delimiter}{a}{self.separator}" for q, a in self.shots)
        return f"{self.description}{solved}{self.question}"

    def messages(self) -> list[Message]:
        """As a chat: the description is the system's, every solved example a turn."""
        made: list[Message] = [{"role": "system", "content": self.description}] if self.description else []
        for question, answer in self.shots:
            made += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return [*made, {"role": "user", "content": self.question}]


@dataclass(frozen=True, kw_only=True)
class ChoiceExample:
    """Several answers, of which the likeliest is the model's. Prompts differ where the question holds the choice."""

    prompts: tuple[Prompt, ...]
    answers: tuple[str, ...]
    grade: Callable[[Sequence[float]], Grades]
    """Of the log-probabilities of all answers, in nats."""
    subset: str | None = None


@dataclass(frozen=True, kw_only=True)
class WrittenExample:
    """A text that the model writes."""

    prompt: Prompt
    grade: Callable[[str], Grades]
    subset: str | None = None


Scores = dict[str, float]


def means(grades: Sequence[Grades]) -> Scores:
    """The mean of every metric over examples that all have the same ones."""
    return {name: sum(one[name] for one in grades) / len(grades) for name in grades[0]}


@dataclass(frozen=True, kw_only=True)
class Task:
    """Examples that are measured together."""

    name: str
    kind: str
    """What it is averaged with: knowledge, common sense, mathematics ..."""
    version: str
    """Of its data and protocol."""
    metric: str
    """The main one; the mean over examples."""
    choices: Sequence[ChoiceExample] = ()
    written: Sequence[WrittenExample] = ()
    stop: tuple[str, ...] = ()
    max_new_tokens: int = 256
    num_fewshot: int = 0
    """How many solved examples stand in each prompt; part of what the figures depend on."""
    chance: float | None = None
    """What guessing gives."""
    shortest: float | None = None
    """What the shortest answer, whatever it says, gives."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """What of the data is not measured, and how many examples have it."""
    total: Callable[[Sequence[Grades]], Scores] = means

    @property
    def subsets(self) -> list[str | None]:
        """Of every example: its subject, or None."""
        return [one.subset for one in self.choices] + [one.subset for one in self.written]
