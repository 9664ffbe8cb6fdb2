from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from gritkit import GritModel
from gritkit.errors import InputError, StoreError, UnsupportedModelError
from gritkit.generation.sampling import Sampler
from gritkit.kv.blocks import BlockStore
from gritkit.rag import Answer, Budget, Delta, Document, Rag, Sources
from gritkit.rag.coding import BlockCoder
from tests.models import CONTEXT, TEXTS, grit_model, shared_model

QUESTION = "what does the fox do?"


@pytest.fixture(scope="module")
def model() -> GritModel:
    return shared_model("llama")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kb"


@pytest.fixture
def rag(folder: Path, model: GritModel) -> Iterator[Rag]:
    with Rag.open(folder, model) as opened:
        opened.add(list(TEXTS))
        yield opened


def blocks(folder: Path) -> list[Path]:
    return sorted((folder / "blocks").glob("??/*.kv"))


# -- ask and stream ----------------------------------------------------------------------------------------------


def test_a_conversation_before_the_question_is_read_and_not_searched(folder: Path) -> None:
    earlier = [{"role": "user", "content": "who is there?"}, {"role": "assistant", "content": "a fox"}]
    model = grit_model("llama", prompt_format="grit")
    with Rag.open(folder, model) as rag:
        rag.add(list(TEXTS))
        for reuse in ("cached", "off"):
            alone, led = (rag.ask(QUESTION, reuse=reuse, max_new_tokens=5, earlier=one) for one in ((), earlier))
            assert led.sources == alone.sources
            more = len(model.tokens.question_prompt(QUESTION, earlier)) - len(model.tokens.question_prompt(QUESTION))
            assert led.usage.prompt_tokens - alone.usage.prompt_tokens == more > 0
            request = rag.prepare(rag.find(QUESTION, earlier=earlier), reuse, "no-bos").request
            prompt = model.tokens.question_prompt(QUESTION, earlier)
            assert list(request.prompt_ids)[-len(prompt) :] == prompt
        with pytest.raises(InputError, match="reuse='query' has no place for a conversation"):
            rag.ask(QUESTION, reuse="query", earlier=earlier)
        with pytest.raises(InputError, match="out of turn"):
            rag.ask(QUESTION, earlier=earlier[:1])
        with pytest.raises(InputError, match="no document fits"):
            rag.ask(QUESTION, earlier=[{"role": "user", "content": "long " * 500}, *earlier[1:]])


def test_only_the_question_is_computed(rag: Rag, model: GritModel) -> None:
    answer = rag.ask(QUESTION, max_new_tokens=5)
    assert answer.reuse == "cached"
    assert answer.sources == rag.search(QUESTION, top_k=3)
    assert answer.usage.prompt_tokens - answer.usage.cached_tokens == len(model.tokens.question_prompt(QUESTION))
    assert answer.usage.cached_tokens > 0
    assert (answer.dropped, answer.recomputed) == ([], 0)
    off = rag.ask(QUESTION, max_new_tokens=5, reuse="off")
    assert (off.reuse, off.usage.cached_tokens) == ("off", 0)
    assert off.usage.prompt_tokens == answer.usage.prompt_tokens
    assert off.sources == answer.sources


def test_a_stream_is_sources_then_text_then_the_answer(rag: Rag) -> None:
    answer = rag.ask(QUESTION, max_new_tokens=12)
    first, *middle, last = rag.stream(QUESTION, max_new_tokens=12)
    assert first == Sources(answer.sources, [])
    assert all(isinstance(event, Delta) for event in middle)
    assert isinstance(last, Answer)
    assert last.text == answer.text == "".join(event.text for event in middle if isinstance(event, Delta))
    assert (last.usage, last.sources, last.finish_reason) == (answer.usage, answer.sources, "length")


def test_the_sources_come_before_anything_is_computed(rag: Rag, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = rag.stream(QUESTION)
    monkeypatch.setattr(BlockStore, "get_many", lambda self, key: pytest.fail("read before the sources were shown"))
    assert isinstance(next(stream), Sources)


def test_timings_leave_out_the_reader(rag: Rag, monkeypatch: pytest.MonkeyPatch) -> None:
    real, away = time.perf_counter, 0.0
    monkeypatch.setattr("gritkit.rag.answering.time.perf_counter", lambda: real() + away)
    began = real()
    for event in rag.stream(QUESTION, max_new_tokens=6):
        if isinstance(event, Answer):
            timings = event.timings
        else:
            away += 1000.0  # the reader takes its time
    assert away > 2000  # there was text
    assert timings.search > 0
    assert timings.load > 0
    assert timings.search + timings.load < timings.first_token < timings.total < real() - began


def test_sampling_options_are_those_of_chat(rag: Rag) -> None:
    sampled = [rag.ask(QUESTION, temperature=1.0, seed=seed, max_new_tokens=8).text for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    with pytest.raises(InputError, match="unknown generation option 'max_tokens'"):
        rag.stream(QUESTION, max_tokens=5)  # before the first event is asked for
    with pytest.raises(InputError, match="temperature"):
        rag.ask(QUESTION, temperature=-1)


def test_options_that_make_no_sense_are_refused_before_anything_runs(rag: Rag) -> None:
    for bad, message in (
        ({"reuse": "always"}, "reuse='always' is not one of 'auto', 'prefix', 'cached', 'linked', 'off', 'query'"),
        ({"join": "bos"}, "join='bos' is not one of"),
        ({"link_tokens": 4}, "goes with reuse='linked' alone"),
        ({"link_tokens": 0, "reuse": "linked"}, "link_tokens=0 must be at least 1"),
        ({"link_tokens": 1.5, "reuse": "linked"}, "link_tokens=1.5"),
    ):
        with pytest.raises(InputError, match=message):
            rag.stream(QUESTION, **bad)  # type: ignore[arg-type]
    for question in ("", " \n", None):
        with pytest.raises(InputError, match="query is empty"):
            rag.ask(question)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="surrogate"):
        rag.ask("a\ud800", by="text")
    with pytest.raises(InputError, match="by='words' is not one of 'dense', 'text', 'hybrid'"):
        rag.ask(QUESTION, by="words")


def test_nothing_to_answer_from_is_an_error(folder: Path, model: GritModel) -> None:
    with Rag.open(folder, model) as rag:
        with pytest.raises(InputError, match="empty: add documents"):
            rag.ask(QUESTION)
        rag.add(Document("text", metadata={"lang": "en"}))
        with pytest.raises(InputError, match=r"no document suits where=\{'lang': 'de'\}"):
            rag.ask(QUESTION, where={"lang": "de"})
        assert rag.ask(QUESTION, where={"lang": "en"}, max_new_tokens=1).sources
        with pytest.raises(InputError, match=r"no document shares a word with the question$"):
            rag.ask("zebra", by="text")
        with pytest.raises(InputError, match="shares a word with the question and suits where="):
            rag.ask("zebra", by="text", where={"lang": "en"})


def test_documents_without_room_are_dropped_and_listed(
    folder: Path, model: GritModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sampler, "pick", lambda self, logits_V: model.tokens.eos_id)  # long answers are not the point

    def size(text: str) -> int:
        return len(model.tokens.to_embed([text], "passage", None, CONTEXT, truncate=False)[0])

    with Rag.open(folder, model) as rag:
        rag.add([f"{'many words ' * count}{count}" for count in (3, 12, 13, 14)])
        ranked = rag.search(QUESTION, top_k=4)
        question = len(model.tokens.question_prompt(QUESTION))
        sizes = [size(hit.text) for hit in ranked]
        room = sizes[0] + sizes[1] - 1  # the second without its beginning
        answer = rag.ask(QUESTION, top_k=4, max_new_tokens=CONTEXT - question - room)
        assert answer.sources[:2] == ranked[:2]
        assert answer.sources + answer.dropped == ranked
        assert answer.dropped
        assert answer.usage.prompt_tokens == question + room
        tighter = rag.ask(QUESTION, top_k=2, max_new_tokens=CONTEXT - question - room + 1)
        assert (tighter.sources, tighter.dropped) == (ranked[:1], ranked[1:2])
        with pytest.raises(InputError, match=r"no document fits: .* lower max_new_tokens"):
            rag.ask(QUESTION, top_k=4, max_new_tokens=CONTEXT - question)


# -- blocks that are gone ----------------------------------------------------------------------------------------


def _remove(path: Path, other: Path) -> None:
    path.unlink()


def _tear(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _flip(path: Path, other: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1000] ^= 4  # in the values
    path.write_bytes(data)


def _swap(path: Path, other: Path) -> None:
    shutil.copy(other, path)


@pytest.fixture
def reopened(folder: Path, rag: Rag, model: GritModel) -> Iterator[Rag]:
    """Nothing in memory, and nothing kept there: every answer reads the disk."""
    with Rag.open(folder, model, budget=Budget(memory=0)) as opened:
        yield opened


@pytest.mark.parametrize("damage", [_remove, _tear, _flip, _swap])
def test_a_damaged_block_is_a_recompute(
    reopened: Rag, folder: Path, damage: Callable[[Path, Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    whole = reopened.ask(QUESTION, top_k=len(TEXTS), max_new_tokens=16)
    assert whole.recomputed == 0
    paths = blocks(folder)
    before = [path.read_bytes() for path in paths]
    for path in paths[1:3]:
        damage(path, paths[0])
    with caplog.at_level(logging.WARNING, "gritkit"):
        answer = reopened.ask(QUESTION, top_k=len(TEXTS), max_new_tokens=16)
    assert (answer.text, answer.usage, answer.recomputed) == (whole.text, whole.usage, 2)
    assert len([record for record in caplog.records if "is not used" in record.getMessage()]) == 2
    assert blocks(folder) == paths
    assert [path.read_bytes() for path in paths] == before  # written back, the same to the last bit
    assert reopened.counts["lost"] == 2
    assert reopened.ask(QUESTION, top_k=len(TEXTS), max_new_tokens=1).recomputed == 0


def test_a_disk_that_refuses_does_not_cost_the_answer(
    reopened: Rag, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    text = reopened.ask(QUESTION, max_new_tokens=4).text
    for path in blocks(folder):
        path.unlink()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("gritkit.kv.blocks._create", full)
    answer = reopened.ask(QUESTION, max_new_tokens=4)
    assert (answer.text, answer.recomputed) == (text, 3)
    assert "are not kept: cannot write a block" in caplog.text
    with pytest.raises(StoreError, match="No space") as error:
        reopened.add("a document more")  # adding is a promise, so it fails
    assert "\n" not in str(error.value)
    assert len(reopened) == len(TEXTS)
    monkeypatch.undo()
    assert reopened.add("a document more").added == 1
    assert len(reopened) == len(TEXTS) + 1


def test_a_folder_of_blocks_that_is_a_file_does_not_cost_the_answer(reopened: Rag, folder: Path) -> None:
    text = reopened.ask(QUESTION, max_new_tokens=4).text
    shutil.rmtree(folder / "blocks")
    (folder / "blocks").write_text("in the way")
    answer = reopened.ask(QUESTION, max_new_tokens=4)
    assert (answer.text, answer.recomputed) == (text, 3)
    with pytest.raises(StoreError, match="cannot write a block"):
        reopened.add("a document more")
    assert len(reopened) == len(TEXTS)


def test_a_block_of_another_model_is_not_an_answer(folder: Path, reopened: Rag, tmp_path: Path) -> None:
    """Blocks copied in from a knowledge base of other weights: other names, so they are never even looked at."""
    whole = reopened.ask(QUESTION, max_new_tokens=8)
    with Rag.open(tmp_path / "other", grit_model("llama_yarn")) as other:
        other.add(list(TEXTS))
    strangers = blocks(tmp_path / "other")
    assert not {path.name for path in strangers} & {path.name for path in blocks(folder)}
    for mine, stranger in zip(blocks(folder), strangers, strict=True):
        shutil.copy(stranger, mine)
    answer = reopened.ask(QUESTION, max_new_tokens=8)
    assert (answer.text, answer.recomputed) == (whole.text, 3)


def test_rows_without_key_values_are_read_when_they_are_needed(folder: Path, model: GritModel) -> None:
    """Indexed by a model that could not write (the same weights), or imported without blocks."""
    searcher = grit_model("llama")
    searcher.writes = False
    with Rag.open(folder, searcher) as rag:
        rag.add(list(TEXTS))
        with pytest.raises(UnsupportedModelError, match="no language-model head: it searches but cannot answer"):
            rag.stream(QUESTION, reuse="cached")
    with Rag.open(folder, model) as rag:
        first, second = (rag.ask(QUESTION, reuse="cached", max_new_tokens=8) for _ in range(2))
        assert (first.recomputed, second.recomputed) == (3, 0)
        assert (first.text, first.usage) == (second.text, second.usage)


# -- the original implementation ---------------------------------------------------------------------------------


def test_the_answer_of_the_original_grit_implementation(shared: Path, folder: Path) -> None:
    meta = json.loads((shared / "golden" / "meta.json").read_text())
    with np.load(shared / "golden" / "reference.npz") as arrays:
        expected = dict(arrays)
    model = GritModel.from_pretrained(
        shared / "golden" / "tiny-mistral", prompt_format="grit", embedding_window="full", device="cpu"
    )
    logits: list[torch.Tensor] = []
    tokens: list[int] = []
    pick = Sampler.pick

    def tap(self: Sampler, logits_V: torch.Tensor) -> int:
        logits.append(logits_V)
        tokens.append(pick(self, logits_V))
        return tokens[-1]

    with Rag.open(folder, model, codec="exact") as rag, pytest.MonkeyPatch.context() as patch:
        rag.add(meta["texts"][2])
        ((row,),) = rag.base.store.get([Document(meta["texts"][2]).id]).values()
        np.testing.assert_allclose(row.vector, expected["doc_rep"].squeeze(), atol=1e-5, rtol=0)
        block = rag.base.blocks.get(row.block_key)
        assert block is not None
        document = BlockCoder(model, "exact").document(block)
        assert document is not None
        patch.setattr(Sampler, "pick", tap)
        answer = rag.ask(meta["query"], max_new_tokens=12, top_k=1)
    tables = model.rope.tables(torch.arange(len(document)))
    for layer in range(document.num_layers):
        keys, values = document.layer(layer, torch.device("cpu"))
        kept = keys.shape[1]  # what a window still sees
        rotated = model.rope.rotate(keys[None], tables, layer)
        np.testing.assert_allclose(rotated, expected[f"cache.k{layer}"][:, :, -kept:], atol=1e-5, rtol=0)
        np.testing.assert_allclose(values[None], expected[f"cache.v{layer}"][:, :, -kept:], atol=1e-5, rtol=0)
    np.testing.assert_allclose(logits[0], expected["doc_cache.logits"].squeeze(), atol=1e-5, rtol=0)
    assert tokens == expected["doc_cache.greedy"].tolist()
    assert answer.usage.cached_tokens == len(document)
