from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch

from gritkit.errors import InputError
from gritkit.kv.codecs import CodecName
from gritkit.model import GritModel
from gritkit.rag import Document
from gritkit.rag.chunking import Chunk
from gritkit.rag.coding import BlockCoder
from gritkit.rag.rates import Rates
from gritkit.rag.reader import CHUNK_TOKENS, Reader, manifest_of, same_text, with_metadata
from gritkit.rag.store import Row
from tests.models import CONTEXT, TEXTS, grit_model, shared_model

GUIDE = "# Guide\n\nRead this first.\n\n## Install\n\n" + "Run the installer and wait. " * 30


@pytest.fixture(scope="module")
def model() -> GritModel:
    return shared_model("llama")


def reader_of(model: GritModel, codec: CodecName = "exact", *, keep: bool = True, **cut: Any) -> Reader:
    return Reader(model, manifest_of(model, codec=codec, **cut), BlockCoder(model, codec) if keep else None)


def rows_of(reader: Reader, *documents: Document) -> list[Row]:
    pieces = [piece for document in documents for piece in reader.cut(document)]
    return [row for rows, _ in reader.read(pieces) for row in rows]


# -- what a knowledge base says of itself --------------------------------------------------------------------------


def test_the_manifest_says_what_everything_depends_on(model: GritModel) -> None:
    manifest = manifest_of(model, codec="int4")
    assert (manifest.fingerprint, manifest.dim, manifest.codec) == (model.fingerprint, model.dim, "int4")
    assert (manifest.chunk_tokens, manifest.chunk_overlap) == (min(CHUNK_TOKENS, CONTEXT), 32)
    small = manifest_of(grit_model("llama", max_length=40), codec="int8")
    assert (small.chunk_tokens, small.chunk_overlap) == (40, 5)
    assert manifest_of(model, codec="int8", chunk_tokens=64, chunk_overlap=0).chunk_overlap == 0


@pytest.mark.parametrize("tokens", [0, 12, 513, 64.0, "64", True])
def test_chunks_that_cannot_be_are_refused(model: GritModel, tokens: Any) -> None:
    with pytest.raises(InputError, match=rf"chunk_tokens={tokens!r} must be between 13 and the 512"):
        manifest_of(model, codec="int8", chunk_tokens=tokens)


def test_wrong_codecs_and_overlaps_are_refused(model: GritModel) -> None:
    with pytest.raises(InputError, match="codec='zip'"):
        manifest_of(model, codec="zip")
    for overlap in (-1, 1.5, "3", True, 300):
        with pytest.raises(InputError, match=f"chunk_overlap={overlap!r}"):
            manifest_of(model, codec="int8", chunk_overlap=overlap)  # type: ignore[arg-type]


# -- digests -------------------------------------------------------------------------------------------------------


def test_a_digest_tells_text_and_metadata_apart(model: GritModel) -> None:
    reader = reader_of(model)
    one = reader.digest(Document("text", id="a", metadata={"x": 1, "y": 2}))
    assert reader.digest(Document("text", id="b", metadata={"y": 2, "x": 1})) == one
    assert reader_of(grit_model("mistral")).digest(Document("text", metadata={"x": 1, "y": 2})) == one
    other = reader.digest(Document("text", metadata={"x": 2}))
    assert other != one
    assert same_text(other, one)
    for changed in (
        reader.digest(Document("text ", metadata={"x": 1, "y": 2})),
        reader.digest(Document("text", kind="markdown", metadata={"x": 1, "y": 2})),
        reader_of(model, chunk_tokens=100).digest(Document("text", metadata={"x": 1, "y": 2})),
        reader_of(model, chunk_overlap=3).digest(Document("text", metadata={"x": 1, "y": 2})),
    ):
        assert not same_text(changed, one)


# -- cutting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_name", ["plain", "grit", "e5", "instruct-query"])
def test_chunks_are_within_their_tokens_and_cover_the_text(format_name: str) -> None:
    model = grit_model("llama", prompt_format=format_name)
    reader = reader_of(model, chunk_tokens=40, chunk_overlap=0)
    text = " ".join(f"naïve word{i} 東京" for i in range(60))
    pieces = reader.cut(Document(text, id="a"))
    assert [piece.number for piece in pieces] == list(range(len(pieces)))
    assert {piece.count for piece in pieces} == {len(pieces)}
    assert len(pieces) > 5
    assert all(len(piece.tokens) <= 40 for piece in pieces)
    assert "".join("".join(piece.text for piece in pieces).split()) == "".join(text.split())
    for piece, tokens in zip(
        pieces, model.tokens.to_embed([p.text for p in pieces], "passage", None, 512, truncate=False), strict=True
    ):
        assert piece.tokens.ids.tolist() == tokens.ids.tolist()  # exactly as the text would be embedded


def test_neighbouring_chunks_overlap(model: GritModel) -> None:
    words = [f"w{i}" for i in range(200)]
    pieces = reader_of(model, chunk_tokens=60, chunk_overlap=20).cut(Document(" ".join(words)))
    assert any(set(a.text.split()) & set(b.text.split()) for a, b in itertools.pairwise(pieces))


def test_many_chunks_are_tokenised_a_few_at_a_time(model: GritModel, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, document = reader_of(model, chunk_tokens=40), Document(" ".join(f"w{i}" for i in range(100)), id="a")
    whole, told = reader.cut(document), []
    monkeypatch.setattr("gritkit.rag.reader._TEXTS_AT_ONCE", 3)
    pieces = reader.cut(document, tick=lambda: told.append(1))
    assert [(one.text, one.tokens.ids.tolist()) for one in pieces] == [
        (one.text, one.tokens.ids.tolist()) for one in whole
    ]
    assert len(told) > len(whole) > 3  # once for each chunk, and between
    reader._limit = len(pieces[3].tokens) - 1
    monkeypatch.setattr(reader._chunker, "chunks", lambda *_, **__: [Chunk("w", 0, 1)] * 4 + [Chunk("w0 " * 99, 0, 9)])
    with pytest.raises(InputError, match="text 4"):  # in its document
        reader.cut(document)


def test_a_short_text_is_one_piece_unchanged(model: GritModel) -> None:
    (piece,) = reader_of(model).cut(Document("  a short text\n", id="a", metadata={"b": [1]}))
    assert (piece.document, piece.number, piece.count, piece.text) == ("a", 0, 1, "  a short text\n")
    assert (piece.metadata, piece.tags) == ('{"b": [1]}', ('["b", [1]]',))


def test_headings_are_metadata_of_the_chunks_under_them(model: GritModel) -> None:
    reader = reader_of(model, chunk_tokens=80)
    pieces = reader.cut(Document(GUIDE, id="a", kind="markdown", metadata={"lang": "en"}))
    assert json.loads(pieces[-1].metadata) == {"lang": "en", "section": "Guide > Install"}
    assert {piece.tags for piece in pieces} == {('["lang", "en"]',)}
    own = reader.cut(Document(GUIDE, id="a", kind="markdown", metadata={"section": 5}))
    assert {piece.metadata for piece in own} == {'{"section": 5}'}
    plain = reader.cut(Document("many words " * 100, id="a", metadata={"lang": "en"}))
    assert {piece.metadata for piece in plain} == {'{"lang": "en"}'}


def test_new_metadata_leaves_the_headings(model: GritModel) -> None:
    reader = reader_of(model, chunk_tokens=80)
    row = rows_of(reader, Document(GUIDE, id="a", kind="markdown", metadata={"lang": "en"}))[-1]
    changed = with_metadata(row, Document(GUIDE, id="a", kind="markdown", metadata={"lang": "de"}), "digest")
    assert json.loads(changed.metadata) == {"lang": "de", "section": "Guide > Install"}
    assert (changed.tags, changed.digest, changed.text) == (('["lang", "de"]',), "digest", row.text)
    owned = with_metadata(changed, Document(GUIDE, id="a", kind="markdown", metadata={"section": "mine"}), "digest")
    assert json.loads(owned.metadata) == {"section": "mine"}
    bare = with_metadata(owned, Document(GUIDE, id="a", kind="markdown"), "digest")
    assert json.loads(bare.metadata) == {}  # "mine" was no heading


@pytest.mark.parametrize("text", ["", " \n\t", "\u3000"])
def test_a_document_without_words_is_named(model: GritModel, text: str) -> None:
    with pytest.raises(InputError, match=r"document 'void' cannot be added: it is empty"):
        reader_of(model).cut(Document(text, id="void"))


# -- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["exact", "bf16", "int8", "int4"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_rows_and_blocks_are_what_the_model_reads(name: str, codec: CodecName) -> None:
    model = shared_model(name)
    reader = reader_of(model, codec)
    pieces = [piece for text in TEXTS for piece in reader.cut(Document(text, id=text))]
    ((rows, blocks),) = list(reader.read(pieces))
    vectors, documents = model.read(list(TEXTS))
    np.testing.assert_allclose(np.stack([row.vector for row in rows if row.vector is not None]), vectors, atol=1e-6)
    for row, block, document in zip(rows, blocks, documents, strict=True):
        assert (row.text, row.id, row.count) == (row.document, f"{row.document}#0", 1)
        assert (row.token_ids, row.block_key, row.fingerprint) == (document.ids, block.key, model.fingerprint)
        back = BlockCoder(model, codec).document(block)
        assert back is not None
        again = BlockCoder(model, codec).document(BlockCoder(model, codec).block(document))
        assert again is not None
        for layer in range(back.num_layers):
            for one, other in zip(
                back.layer(layer, torch.device("cpu")), again.layer(layer, torch.device("cpu")), strict=True
            ):
                assert torch.allclose(one, other, atol=1e-5 if codec in ("exact", "bf16") else 0.5)


def test_without_a_coder_there_are_rows_alone(model: GritModel) -> None:
    reader = reader_of(model, keep=False)
    ((rows, blocks),) = list(reader.read(reader.cut(Document(TEXTS[0], id="a"))))
    assert blocks == []
    assert rows[0].block_key == ""
    np.testing.assert_allclose(rows[0].vector, model.embed(TEXTS[0]), atol=1e-6)


def test_memory_is_bounded_by_groups(model: GritModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gritkit.rag.reader._READ_TOKENS", 50)
    monkeypatch.setattr("gritkit.rag.reader.token_budget", lambda device: 10)
    reader = reader_of(model)
    pieces = [piece for i in range(12) for piece in reader.cut(Document(f"a text of some words {i}", id=str(i)))]
    groups = [rows for rows, _ in reader.read(pieces)]
    assert len(groups) > 2
    assert [row.document for rows in groups for row in rows] == [str(i) for i in range(12)]
    assert all(sum(len(row.token_ids) for row in rows) <= 50 for rows in groups)
    assert list(reader.read([])) == []


def test_a_stored_chunk_is_read_again_as_it_was(model: GritModel) -> None:
    reader = reader_of(model, chunk_tokens=80)
    rows = rows_of(reader, Document(GUIDE, id="a", kind="markdown", metadata={"lang": "en"}))
    again = [row for some, _ in reader.read([reader.again(row) for row in rows]) for row in some]
    for one, other in zip(rows, again, strict=True):
        np.testing.assert_allclose(one.vector, other.vector, atol=1e-6)
        assert {**vars(one), "vector": None} == {**vars(other), "vector": None}
    tiny = reader_of(grit_model("llama", max_length=20))
    with pytest.raises(InputError, match=r"chunk 'a#\d' cannot be read by this model: .* max_length is 20"):
        [tiny.again(row) for row in rows]


def test_passes_are_measured(model: GritModel, tmp_path: Any) -> None:
    rates = Rates(tmp_path / "rates.json")
    reader = Reader(model, manifest_of(model, codec="exact"), BlockCoder(model, "exact"), rates)
    list(reader.read(reader.cut(Document("many words " * 40))))
    assert (rates.seconds("prefill", 1) or 0) > 0
