"""IFEval: instructions whose following a program can check, by lm-evaluation-harness's own checkers.

Zhou et al. 2023, arXiv 2311.07911. A prompt is followed when all of its instructions are; "loose" forgives a first or
last line that says more, and asterisks. Two checkers need a language resource of nltk that no package brings
(``punkt_tab``); where it is not on this machine, the prompts that ask for them are left out, and counted.

This module knows nothing about models.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gritkit.errors import MissingExtraError
from gritkit_eval.generation.rows import Row
from gritkit_eval.generation.tasks import Grades, Prompt, Scores, WrittenExample, means

NEED_PUNKT = ("length_constraints:number_sentences", "change_case:capital_word_frequency")
_COUNTS = ("followed_strict", "followed_loose", "instructions")


def checkers() -> Any:
    """The harness's module of checkers.

    Raises:
        MissingExtraError: without lm-eval, or what its checkers import.
    """
    for package in ("lm_eval", "nltk", "langdetect", "immutabledict"):
        try:
            __import__(package)
        except ImportError:
            raise MissingExtraError(package, "eval") from None
    import langdetect

    langdetect.DetectorFactory.seed = 0  # it guesses languages at random otherwise
    with _no_download():
        from lm_eval.tasks.ifeval import utils
    return utils


@contextlib.contextmanager
def _no_download() -> Iterator[None]:
    """The harness fetches punkt_tab as soon as it is imported and prints that it did; nobody asked for either."""
    import nltk

    fetch, nltk.download = nltk.download, lambda *_, **__: False
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        nltk.download = fetch


def unusable() -> tuple[str, ...]:
    """Instructions that cannot be checked on this machine."""
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        return NEED_PUNKT
    return ()


def split(rows: Sequence[Row], without: Sequence[str]) -> tuple[list[Row], dict[str, int]]:
    """(rows that can be checked, how many of the others ask for each instruction of ``without``)."""
    kept, left_out = [], Counter[str]()
    for row in rows:
        missing = sorted(set(row["instruction_id_list"]) & set(without))
        left_out.update(missing)
        if not missing:
            kept.append(row)
    return kept, dict(left_out)


def instructed(row: Row, utils: Any) -> WrittenExample:
    """A prompt with instructions."""
    asked = utils.InputExample(
        key=row["key"], instruction_id_list=row["instruction_id_list"], prompt=row["prompt"], kwargs=row["kwargs"]
    )

    def grade(text: str) -> Grades:
        strict = utils.test_instruction_following_strict(asked, text)
        loose = utils.test_instruction_following_loose(asked, text)
        return {
            "prompt_strict": float(strict.follow_all_instructions),
            "prompt_loose": float(loose.follow_all_instructions),
            "followed_strict": float(sum(strict.follow_instruction_list)),
            "followed_loose": float(sum(loose.follow_instruction_list)),
            "instructions": float(len(asked.instruction_id_list)),
        }

    return WrittenExample(prompt=Prompt(question=row["prompt"]), grade=grade)


def total(grades: Sequence[Grades]) -> Scores:
    """Shares of the prompts, and of all instructions together."""
    sums = {name: sum(one[name] for one in grades) for name in _COUNTS}
    rest = means([{name: value for name, value in one.items() if name not in _COUNTS} for one in grades])
    return rest | {
        f"instruction_{kind}": sums[f"followed_{kind}"] / sums["instructions"] for kind in ("strict", "loose")
    }


def ids(value: Any, _: Mapping[str, Any]) -> str | None:
    """What a list of instructions must be."""
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    if not isinstance(value, list) or not value:
        return "is not a list of instructions"
    unknown = [one for one in value if one not in INSTRUCTION_DICT]
    return f"has the unknown instruction {unknown[0]!r}" if unknown else None


def options(value: Any, row: Mapping[str, Any]) -> str | None:
    """What the options of the instructions must be."""
    good = isinstance(value, list) and all(isinstance(one, dict) for one in value)
    return None if good and len(value) == len(row["instruction_id_list"]) else "is not one object for each instruction"
