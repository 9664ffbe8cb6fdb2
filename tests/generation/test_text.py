"""Streaming text: whole characters, no part of a stop string, and nothing lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoTokenizer

from gritkit.generation.text import TextStream
from tests.models import tokenizer as byte_level

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\N{REPLACEMENT CHARACTER}"), max_size=40)
HARD = [
    "東京タワー 🦊👩‍👩‍👧‍👦!",
    "e\u0301a\u0300 नमस्ते",
    "  two  spaces\n\n\tand tabs ",
    "plain words here",
    "😀😀😀",
    "ß→中",
]


def without_merges() -> Tokenizer:
    """One token a byte: every character outside ASCII is torn."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


BYTES = without_merges()


@pytest.fixture(scope="module")
def tokenizers(shared: Path) -> dict[str, Tokenizer]:
    names = {
        "llama2": "tokenizers/llama2-32k",
        "neox": "tokenizers/gpt-neox-olmo-50k",
        "stories": "models/stories260K-hf",
    }
    real = {name: AutoTokenizer.from_pretrained(shared / path).backend_tokenizer for name, path in names.items()}
    return {**real, "bytes": BYTES, "merges": byte_level().backend_tokenizer}


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def pieces(stream: TextStream, ids: list[int]) -> list[str]:
    """What each token shows, up to the stop, then the rest."""
    shown = []
    for token in ids:
        shown.append(stream.push(token))
        if stream.stopped:
            return shown
    return [*shown, stream.end()]


@pytest.mark.parametrize("kind", ["llama2", "neox", "stories", "bytes", "merges"])
@pytest.mark.parametrize("prompt", ["Say:", "Say:\n", "中文 😀😀", "x"])
def test_pieces_join_to_the_decoded_text(tokenizers: dict[str, Tokenizer], kind: str, prompt: str) -> None:
    tokenizer = tokenizers[kind]
    before = ids_of(tokenizer, prompt)
    for text in HARD:
        whole = ids_of(tokenizer, prompt + text)
        if whole[: len(before)] != before:
            continue
        shown = pieces(TextStream(tokenizer, before), whole[len(before) :])
        decoded, start = tokenizer.decode(whole), tokenizer.decode(before)
        assert decoded.startswith(start)
        assert "".join(shown) == decoded[len(start) :]
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in shown), "a torn character was shown"


@settings(deadline=None, max_examples=150)
@given(prompt=TEXTS.filter(bool), text=TEXTS)
def test_any_text_in_bytes(prompt: str, text: str) -> None:
    shown = pieces(TextStream(BYTES, ids_of(BYTES, prompt)), ids_of(BYTES, text))
    assert "".join(shown) == text
    assert all(piece == "" or "\N{REPLACEMENT CHARACTER}" not in piece for piece in shown)


@settings(deadline=None, max_examples=150)
@given(ids=st.lists(st.integers(0, 255), max_size=40))
@example(ids=[BYTES.token_to_id("Ģ")] * 7 + BYTES.encode("中").ids)  # 0x80; patience ends inside the character
def test_broken_bytes_are_shown_and_valid_text_after_them_too(ids: list[int]) -> None:
    shown = "".join(pieces(TextStream(BYTES, ids_of(BYTES, "a ")), [*ids, *ids_of(BYTES, " ok 中")]))
    assert shown.endswith(" ok 中")
    assert shown == BYTES.decode([*ids, *ids_of(BYTES, " ok 中")])


def test_the_first_word_keeps_its_space(tokenizers: dict[str, Tokenizer]) -> None:
    for kind in ("llama2", "stories", "neox"):
        tokenizer = tokenizers[kind]
        whole, before = ids_of(tokenizer, "Once upon"), ids_of(tokenizer, "Once")
        assert whole[: len(before)] == before
        assert pieces(TextStream(tokenizer, before), whole[len(before) :])[0].startswith(" u")


def test_a_replacement_character_of_the_text_itself_is_shown() -> None:
    text = "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"
    assert "".join(pieces(TextStream(BYTES, ids_of(BYTES, "x")), ids_of(BYTES, text))) == text


@settings(deadline=None, max_examples=300)
@given(text=st.text("ab中\n", max_size=16), stops=st.lists(st.text("ab中\n", min_size=1, max_size=4), max_size=3))
def test_stop_strings(text: str, stops: list[str]) -> None:
    """Whatever the tokens' borders: the text up to the earliest stop met, and never a piece of one before."""
    stream = TextStream(BYTES, ids_of(BYTES, "x"), stops)
    shown = ""
    seen: list[int] = []
    for token in ids_of(BYTES, text):
        shown += stream.push(token)
        seen.append(token)
        so_far = BYTES.decode(seen)
        assert so_far.startswith(shown)
        assert not any(stop in shown for stop in stops)
        if stream.stopped:
            break
    shown += stream.end()
    met = [text.find(stop) for stop in stops if stop in text]
    assert stream.stopped is bool(met)
    if not met:
        assert shown == text
    else:
        ends = min(text.find(stop) + len(stop) for stop in stops if stop in text)
        assert shown == text[: min(at for stop in stops if (at := text[:ends].find(stop)) >= 0)]


def test_a_stop_inside_one_token_and_across_many(tokenizers: dict[str, Tokenizer]) -> None:
    for kind, tokenizer in tokenizers.items():
        text = "Once upon a time"
        whole, before = ids_of(tokenizer, "x\n" + text), ids_of(tokenizer, "x\n")
        if whole[: len(before)] != before:
            continue
        for stop in ("n a", "up", " a t", "e"):
            stream = TextStream(tokenizer, before, [stop])
            assert "".join(pieces(stream, whole[len(before) :])) == text[: text.find(stop)], (kind, stop)
            assert stream.stopped
            assert stream.end() == ""


def test_special_tokens_are_not_shown() -> None:
    tokenizer: Any = byte_level()
    ids = [*ids_of(tokenizer.backend_tokenizer, "one"), 0, *ids_of(tokenizer.backend_tokenizer, " two"), 1]
    assert "".join(pieces(TextStream(tokenizer.backend_tokenizer, [0]), ids)) == "one two"
