from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from gritkit.errors import InputError
from gritkit.rag.chunking import Chunk, Chunker
from gritkit.rag.outline import joined
from tests.models import tokenizer

PROSE = ("The beaver builds a dam. It does so at night! Does the otter? " * 12 + "\n\n") * 6


def byte_tokens() -> Tokenizer:
    """Tokens are a few bytes, also parts of a character."""
    return tokenizer().backend_tokenizer


def sentencepiece_tokens() -> Tokenizer:
    """As Llama 2's: a space is put before the text, so a part on its own has other tokens than in its place."""
    vocabulary = {
        token: index for index, token in enumerate(["<unk>", *map(chr, range(32, 127)), "▁", "▁t", "▁th", "e."])
    }
    model = BPE(vocabulary, [("▁", "t"), ("▁t", "h"), ("e", ".")], unk_token="<unk>")
    result = Tokenizer(model)
    result.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    result.decoder = decoders.Replace("▁", " ")
    return result


def lossy_tokens() -> Tokenizer:
    """As BERT's: case, accents and white space are gone, and a character may become many (NFKD)."""
    result = Tokenizer(BPE({"[UNK]": 0, "a": 1, "b": 2}, [], unk_token="[UNK]"))
    result.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.Lowercase(), normalizers.StripAccents()])
    result.pre_tokenizer = pre_tokenizers.Whitespace()
    return result


def ending_tokens() -> Tokenizer:
    """Every text takes three more tokens at its end, which it has not where another part follows."""
    result = byte_tokens()
    result.normalizer = normalizers.Replace(Regex(r"\z"), "\u00a7-")
    return result


TOKENIZERS = {"bytes": byte_tokens(), "sentencepiece": sentencepiece_tokens(), "lossy": lossy_tokens()} | {
    "ending": ending_tokens()
}
PARTS = [
    "word ", "the ", "A sentence. ", "\n", "\n\n", "\r\n", "# Top\n", "## Sub\n", "```\n", "    indented\n", "}",
    " " * 30, "\t", "e\u0301", "👩🏽‍🔬", "🇩🇪", "東京は首都。", "한국", "</s>", "- item\n", "def f():\n", "...",
    "x" * 40, "\u2028", "\ufb01",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PARTS) | st.characters(exclude_categories=["Cs"]), max_size=120).map("".join)


def check(chunker: Chunker, text: str, chunks: list[Chunk]) -> None:
    """What holds for every text: the cover, the order, the limits."""
    done = 0
    for number, chunk in enumerate(chunks):
        assert chunk.text == text[chunk.start : chunk.end]
        assert chunk.text.strip()
        assert chunker.count(chunk.text) <= chunker.max_tokens
        if chunk.start < done:
            assert chunker.count(text[chunk.start : done]) <= chunker.overlap
        else:
            assert not text[done : chunk.start].strip()
        if number:
            assert chunk.start > chunks[number - 1].start
        assert chunk.end > done
        done = chunk.end
    assert not text[done:].strip()


@settings(max_examples=400, deadline=None)
@given(
    text=TEXTS,
    kind=st.sampled_from(["text", "markdown", "code:python"]),
    name=st.sampled_from(sorted(TOKENIZERS)),
    max_tokens=st.integers(24, 60),
    overlap=st.integers(0, 12),
)
def test_chunks_cover_the_text_within_the_limits(
    text: str, kind: str, name: str, max_tokens: int, overlap: int
) -> None:
    chunker = Chunker(TOKENIZERS[name], max_tokens=max_tokens, overlap=overlap)
    chunks = chunker.chunks(text, kind)
    check(chunker, text, chunks)
    if chunker.count(text) <= max_tokens:
        assert [chunk.text for chunk in chunks] == ([text] if text.strip() else [])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["e\u0301", "👩🏽‍🔬", "🇩🇪", "東", "ё", "a"]), min_size=30, max_size=90).map("".join))
def test_no_visible_character_is_cut(text: str) -> None:
    chunker = Chunker(TOKENIZERS["bytes"], max_tokens=24)
    chunks = chunker.chunks(text)
    check(chunker, text, chunks)
    assert not any(joined(text, chunk.end) for chunk in chunks)


def test_chunks_end_where_the_structure_does() -> None:
    chunker = Chunker(TOKENIZERS["bytes"], max_tokens=200, overlap=40)
    chunks = chunker.chunks(PROSE)
    check(chunker, PROSE, chunks)
    assert all(chunk.text[-1] in ".!?" for chunk in chunks)
    repeated = [old.end - new.start for old, new in itertools.pairwise(chunks)]
    assert max(repeated) > 20  # there is an overlap, and it begins a sentence
    assert all(chunk.text.startswith(("The", "It", "Does")) for chunk in chunks)
    counts = [chunker.count(chunk.text) for chunk in chunks[:-1]]
    assert min(counts) >= 100  # at least half full


def test_sections_are_not_mixed_and_know_their_headings() -> None:
    sections = [f"## Part {number}\n\n" + "some words here. " * 10 for number in range(6)]
    text = "# Guide\n\nIntroduction.\n\n" + "\n\n".join(sections)
    chunker = Chunker(TOKENIZERS["bytes"], max_tokens=120, overlap=30)
    chunks = chunker.chunks(text, "markdown")
    check(chunker, text, chunks)
    assert [chunk.trail for chunk in chunks][-1] == ("Guide", "Part 5")
    begins = [chunk for chunk in chunks if chunk.text.startswith("## ")]
    assert [chunk.trail[-1] for chunk in begins] == [f"Part {number}" for number in range(len(begins))] or len(
        begins
    ) >= 5
    assert {chunk.trail for chunk in chunker.chunks(text, "text")} == {()}


def test_code_is_cut_between_definitions() -> None:
    body = "".join(f"    def method_{number}(self):\n        return {number}\n\n" for number in range(12))
    text = f"class A:\n{body}\nclass B:\n{body}"
    chunker = Chunker(TOKENIZERS["bytes"], max_tokens=150)
    chunks = chunker.chunks(text, "code:python")
    check(chunker, text, chunks)
    assert any(chunk.text.startswith("class B") for chunk in chunks)
    assert all(chunk.text.startswith(("class", "    def")) for chunk in chunks)


def test_a_short_text_is_one_chunk_and_space_is_none() -> None:
    chunker = Chunker(TOKENIZERS["bytes"], max_tokens=32)
    assert chunker.chunks("  short \n") == [Chunk("  short \n", 0, 9)]
    assert chunker.chunks("") == chunker.chunks(" \n\t") == []


def test_it_can_be_ended_before_every_chunk() -> None:
    chunker, text = Chunker(TOKENIZERS["bytes"], max_tokens=16, overlap=4), "some words of a long text. " * 40
    chunks, told = chunker.chunks(text), []
    assert chunker.chunks(text, tick=lambda: told.append(1)) == chunks
    assert len(told) >= len(chunks) > 10

    def end() -> None:
        told.append(1)
        if len(told) == 3:
            raise KeyError

    told.clear()
    with pytest.raises(KeyError):
        chunker.chunks(text, tick=end)
    assert len(told) == 3


def test_the_tokenizer_is_left_as_it_is() -> None:
    mine = byte_tokens()
    mine.enable_truncation(10)
    mine.enable_padding(length=500)
    chunker = Chunker(mine, max_tokens=40)
    check(chunker, PROSE, chunker.chunks(PROSE))
    assert mine.truncation is not None
    assert mine.padding is not None


@pytest.mark.parametrize(
    ("max_tokens", "overlap", "says"), [(7, 0, "too small"), (True, 0, "True"), (32, 17, "0 to 16"), (32, -1, "-1")]
)
def test_impossible_sizes_are_refused(max_tokens: int, overlap: int, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Chunker(TOKENIZERS["bytes"], max_tokens=max_tokens, overlap=overlap)


def test_a_character_that_fits_in_no_chunk_is_named() -> None:
    with pytest.raises(InputError, match=r"U\+FDFA alone takes 1\d tokens"):
        Chunker(TOKENIZERS["lossy"], max_tokens=8).chunks("a b " * 8 + "\ufdfa" + " a b" * 8)


SIZE = 20_000
SHAPES = {
    "no space": "a" * SIZE,
    "one line": "some words " * (SIZE // 11),
    "space": "a" + " " * SIZE + "b",
    "lines": "\n" * SIZE + "b" + "\n" * SIZE,
    "dots": "." * SIZE,
    "quotes": ".\"'" * (SIZE // 3),
    "accents": "e" + "\u0301" * SIZE,
    "flags": "🇩" * (SIZE // 4),
    "headings": "# x\n" * (SIZE // 4),
    "fences": "```\n" * (SIZE // 4),
    "quoted": "".join("> " * depth + "x\n" for depth in range(120)),
    "nested": "".join("  " * depth + "- x\n" for depth in range(120)),
    "comment": "<!--\n" * (SIZE // 5),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_time_grows_with_the_size_whatever_the_shape(shape: str) -> None:
    text = SHAPES[shape]
    chunker = Chunker(TOKENIZERS["bytes"], max_tokens=256, overlap=32)
    for kind in ("markdown", "code:c"):
        begin = time.process_time()
        chunks = chunker.chunks(text, kind)
        taken = time.process_time() - begin
        check(chunker, text, chunks)
        assert taken < 2.0  # 0.05 to 0.3 measured; the square of the size would be minutes


def test_a_real_tokenizer(shared: Path) -> None:
    real = Tokenizer.from_file(str(shared / "tokenizers/llama2-32k/tokenizer.json"))
    chunker = Chunker(real, max_tokens=64, overlap=16)
    check(chunker, PROSE, chunker.chunks(PROSE))
    assert len(chunker.chunks(PROSE)) > 10
