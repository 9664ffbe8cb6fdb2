"""Formats as strings: the original ones, to the letter."""

from __future__ import annotations

import pytest

from gritkit.errors import InputError
from gritkit.prompts import FORMATS, GRIT, PLAIN, chat_template, grit_turns, prompt_format


@pytest.mark.parametrize(
    ("name", "role", "instruction", "expected"),
    [
        ("grit", "query", "Find it", "<|user|>\nFind it\n<|embed|>\n"),
        ("grit", "passage", "Find it", "<|user|>\nFind it\n<|embed|>\n"),
        ("grit", "query", None, "<|embed|>\n"),
        ("grit", "passage", "", "<|embed|>\n"),
        ("plain", "query", "Find it", "Find it\n"),
        ("plain", "passage", None, ""),
        ("e5", "query", None, "query: "),
        ("e5", "passage", None, "passage: "),
        ("instruct-query", "query", "Find it", "Instruct: Find it\nQuery: "),
        ("instruct-query", "query", None, ""),
        ("instruct-query", "passage", None, ""),
    ],
)
def test_prefixes(name, role, instruction, expected: str) -> None:
    assert prompt_format(name).embed_prefix(role, instruction) == expected


def test_braces_in_an_instruction_are_text() -> None:
    assert GRIT.embed_prefix("query", "{text} {0} {instruction}") == "<|user|>\n{text} {0} {instruction}\n<|embed|>\n"


def test_refusals() -> None:
    with pytest.raises(InputError, match=r"prompt_format='gritt' is unknown; choose one of e5, grit"):
        prompt_format("gritt")
    with pytest.raises(InputError, match="'e5' has no place for an instruction in a query"):
        FORMATS["e5"].embed_prefix("query", "x")
    with pytest.raises(InputError, match="'instruct-query' has no place for an instruction in a passage"):
        FORMATS["instruct-query"].embed_prefix("passage", "x")
    with pytest.raises(InputError, match="role='doc' is neither 'query' nor 'passage'"):
        GRIT.embed_prefix("doc", None)  # type: ignore[arg-type]


def test_turns() -> None:
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": " a "},
        {"role": "assistant", "content": " b "},
        {"role": "user", "content": "c"},
    ]
    assert grit_turns(messages) == [("S\n\n a ", "b"), ("c", None)]


def test_templates() -> None:
    assert chat_template(PLAIN, with_bos=True) is None
    assert "bos_token" in (chat_template(GRIT, with_bos=True) or "")
    assert "bos_token" not in (chat_template(GRIT, with_bos=False) or "")
    for preset in FORMATS.values():
        assert preset.score.count("{document}") == 1
        assert preset.ask.count("{question}") == 1
        assert preset.user is None or preset.user.count("{content}") == 1
