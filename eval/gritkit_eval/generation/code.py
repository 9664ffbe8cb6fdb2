"""HumanEval: functions that a model writes, graded by running their tests in the sandbox.

Wordings and stop strings are lm-evaluation-harness's (``humaneval``, and ``humaneval_instruct`` for chats). One answer
is written to a problem, so the share that passes is pass@1 (Chen et al. 2021, arXiv 2107.03374).

This module knows nothing about models, or how code is confined.
"""

from __future__ import annotations

from gritkit_eval.generation.rows import Row
from gritkit_eval.generation.sandbox import Limits, run
from gritkit_eval.generation.tasks import Grades, Prompt, WrittenExample

STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
_FENCE = "```"


def program(row: Row, text: str, *, chat: bool) -> str:
    """The function, its tests, and their call; in a chat the code ends where its fence closes."""
    body = text.split(_FENCE, 1)[0] if chat else text
    return f"{row['prompt']}{body}\n{row['test']}\ncheck({row['entry_point']})\n"


def problem(row: Row, *, chat: bool, limits: Limits) -> WrittenExample:
    """A function to be completed."""

    def grade(text: str) -> Grades:
        return {"pass@1": float(run(program(row, text, chat=chat), limits).passed)}

    if not chat:
        return WrittenExample(prompt=Prompt(question=row["prompt"]), grade=grade)
    question = (
        "Write a solution to the following problem and make sure that it passes the tests:\n"
        f"{_FENCE}python\n{row['prompt']}\n{_FENCE}\n"
    )
    opening = f"Here is the completed function:\n{_FENCE}python\n{row['prompt']}\n"
    return WrittenExample(prompt=Prompt(question=question, opening=opening), grade=grade)
