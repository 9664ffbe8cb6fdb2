from __future__ import annotations

import pytest

from gritkit import encoding
from gritkit.encoding import beginning, encoded_each
from gritkit.errors import InputError
from gritkit.prompts import prompt_format
from gritkit.tokens import Tokens
from tests.models import TEXTS, tokenizer

TOKENIZER = tokenizer().backend_tokenizer
LONG = " ".join(TEXTS) * 50


def count(text: str) -> int:
    return len(TOKENIZER.encode(text, add_special_tokens=False))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_WINDOW", 500)
    monkeypatch.setattr(encoding, "_AT_ONCE", 700)


@pytest.mark.usefixtures("small_parts")
def test_the_beginning_of_a_text_has_more_tokens_than_were_asked_for() -> None:
    some = beginning(TOKENIZER, LONG, 300)
    assert LONG.startswith(some)
    assert 300 < count(some) < 1000
    assert len(some) < len(LONG) / 4
    assert beginning(TOKENIZER, LONG, count(LONG)) == LONG
    assert beginning(TOKENIZER, LONG[:500], 1) == LONG[:500]


def test_a_text_of_usual_length_is_whole() -> None:
    assert beginning(TOKENIZER, LONG, 1) is LONG


@pytest.mark.usefixtures("small_parts")
def test_texts_are_encoded_as_if_together() -> None:
    texts = [*TEXTS, LONG, *TEXTS * 9]
    together = TOKENIZER.encode_batch(texts, add_special_tokens=False)
    assert [one.ids for one in encoded_each(TOKENIZER, texts)] == [one.ids for one in together]
    assert list(encoded_each(TOKENIZER, [])) == []


@pytest.mark.parametrize("name", ["grit", "plain"])
def test_what_a_large_text_is_cut_to_does_not_depend_on_how_much_of_it_is_encoded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = Tokens(tokenizer(), prompt_format(name))

    def made() -> list[list[int]]:
        cut = tokens.to_embed(["a", LONG], "query", None, 60, truncate=True)
        scored = tokens.to_score("fox", ["dog", LONG], 60, truncate=True)
        return [one.ids.tolist() for one in (*cut, *scored)]

    whole = made()
    monkeypatch.setattr(encoding, "_WINDOW", 500)
    assert made() == whole
    with pytest.raises(InputError, match="text 1 is more than 60 tokens long and max_length is 60: "):
        tokens.to_embed(["a", LONG], "query", None, 60, truncate=False)
    with pytest.raises(InputError, match="document 0 and the query are more than 60 tokens long"):
        tokens.to_score("fox", [LONG], 60, truncate=False)
    with pytest.raises(InputError, match="the query is more than 60 tokens long"):
        tokens.to_score(LONG, ["fox"], 60, truncate=True)
    assert tokens.is_longer(LONG, 60)
    assert not tokens.is_longer(LONG, 100_000)
