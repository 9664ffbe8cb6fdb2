from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gritkit.errors import InputError
from gritkit_eval.mteb.instructions import Instruction, instruction_for, load_overrides


@dataclass
class Metadata:
    """The part of mteb's TaskMetadata that instructions look at."""

    name: str
    type: str
    prompt: Any = None


FIQA = "Given a financial question, retrieve user replies that best answer the question"


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (Metadata("FiQA2018", "Retrieval"), Instruction(FIQA, None)),
        (Metadata("FiQA2018", "Retrieval", "mteb's own"), Instruction(FIQA, None)),
        (Metadata("FEVERHardNegatives", "Retrieval"), Instruction(
            "Given a claim, retrieve documents that support or refute the claim", None)),
        (Metadata("Touche2020Retrieval.v3", "Retrieval"), Instruction(
            "Given a question, retrieve detailed and persuasive arguments that answer the question", None)),
        (Metadata("CQADupstackGamingRetrieval", "Retrieval"), Instruction(
            "Given a question, retrieve detailed question descriptions from Stackexchange that are duplicates to the "
            "given question", None)),
        (Metadata("AskUbuntuDupQuestions", "Reranking"), Instruction(
            *2 * ["Retrieve duplicate questions from AskUbuntu forum"])),
        (Metadata("STS12", "STS"), Instruction(*2 * ["Retrieve semantically similar text."])),
        (Metadata("Banking77Classification.v2", "Classification"), Instruction(
            *2 * ["Given a online banking query, find the corresponding intents"])),
        (Metadata("New", "Classification", "Sort these"), Instruction("Sort these", "Sort these")),
        (Metadata("New", "Retrieval", {"query": "Ask", "document": "Tell"}), Instruction("Ask", "Tell")),
        (Metadata("New", "Retrieval", {"query": "Ask"}), Instruction("Ask", None)),
        (Metadata("New", "InstructionRetrieval"), Instruction("Retrieve text based on user query.", None)),
        (Metadata("New", "Clustering"), Instruction(*2 * ["Identify categories in user passages."])),
    ],
)  # fmt: skip
def test_a_task_has_the_instruction_of_its_name_else_mtebs_else_its_types(
    task: Metadata, expected: Instruction
) -> None:
    assert instruction_for(task) == expected


def test_a_users_instructions_come_first_by_name_then_by_type(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(
        json.dumps(
            {"STS": "Compare", "STS12": "", "NQ": {"query": "Find"}, "SciDocsRR": {"query": "q", "passage": "p"}}
        )
    )
    own = load_overrides(path, {"STS", "STS12", "NQ", "SciDocsRR"})
    assert instruction_for(Metadata("STS13", "STS"), own) == Instruction("Compare", "Compare")
    assert instruction_for(Metadata("STS12", "STS"), own) == Instruction(None, None)
    assert instruction_for(Metadata("NQ", "Retrieval"), own) == Instruction("Find", None)
    assert instruction_for(Metadata("SciDocsRR", "Reranking"), own) == Instruction("q", "p")
    assert instruction_for(Metadata("FiQA2018", "Retrieval"), own) == Instruction(FIQA, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "own.json"),
        ("[1]", "one JSON object"),
        ('{"STS99": "x"}', "'STS99' is neither a task nor a type of this run: STS"),
        ('{"STS": 3}', "'STS' must be a string or an object"),
        ('{"STS": {"question": "x"}}', "'STS' has a key 'question'"),
        ('{"STS": {"query": 3}}', "'STS': 'query' must be a string, not 3"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_the_key(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "own.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"own\.json") as caught:
        load_overrides(path, {"STS"})
    assert said in str(caught.value)
