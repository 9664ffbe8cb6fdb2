from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gritkit import GritModel
from gritkit.errors import InputError, StoreError, UnsupportedModelError
from gritkit.files import home
from gritkit.generation.sampling import Sampler
from gritkit.kv.blocks import BlockStore
from gritkit.rag import Answer, Budget, Delta, Document, Rag, Sources, verdicts
from gritkit.rag.coding import BlockCoder
from gritkit.rag.verdicts import Verdict
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


# -- ways of reuse -------------------------------------------------------------------------------------------------


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdicts of these tests are not found by others."""
    monkeypatch.setenv("GRITKIT_HOME", str(tmp_path / "home"))


def test_every_way_can_be_asked_for_and_is_reported_and_counted(rag: Rag) -> None:
    ways = ["off", "cached", "linked", "query", "query_doc", "doc_query"]
    answers = {way: rag.ask(QUESTION, reuse=way, max_new_tokens=4) for way in ways}
    assert [(answer.reuse, answer.reason) for answer in answers.values()] == [(way, "asked for") for way in ways]
    assert rag.answers == dict.fromkeys(ways, 1)
    assert answers["off"].usage.cached_tokens == 0
    assert answers["linked"].usage.cached_tokens < answers["cached"].usage.cached_tokens
    assert rag.ask(QUESTION, reuse="linked", link_tokens=1, max_new_tokens=1).usage.cached_tokens == (
        answers["cached"].usage.cached_tokens - 2
    )
    assert len({answer.text for answer in answers.values()}) > 3  # other functions of the same documents


def test_the_same_beginning_is_read_once(rag: Rag, model: GritModel) -> None:
    off = rag.ask(QUESTION, reuse="off", max_new_tokens=8)
    assert rag.ask(QUESTION, max_new_tokens=1).reuse == "cached"  # asked by name, off keeps nothing
    first, second = (rag.ask(QUESTION, reuse="prefix", max_new_tokens=8) for _ in range(2))
    assert (first.reuse, second.reuse) == ("off", "prefix")
    assert first.reason == "its beginning was not read before"
    assert off.text == first.text == second.text
    assert first.usage == off.usage
    assert second.usage.prompt_tokens == off.usage.prompt_tokens
    assert second.usage.prompt_tokens - second.usage.cached_tokens == len(model.tokens.question_prompt(QUESTION))
    auto = rag.ask(QUESTION, max_new_tokens=8)
    assert (auto.reuse, auto.text) == ("prefix", off.text)
    assert "read in this order before" in auto.reason
    assert rag.ask(QUESTION, top_k=2, max_new_tokens=1).reuse == "cached"  # another beginning


def test_what_was_deleted_is_in_no_memory(rag: Rag, folder: Path) -> None:
    rag.ask(QUESTION, reuse="prefix", max_new_tokens=1)
    answer = rag.ask(QUESTION, reuse="cached", max_new_tokens=1)
    gone = answer.sources[0]
    rows = rag.base.store.get([gone.id])[gone.id]
    assert rag.delete(gone.id) == 1
    assert rag._cache is not None
    assert rag._cache.get_many([row.block_key for row in rows]) == [None]
    left = rag.ask(QUESTION, max_new_tokens=1)
    assert gone.id not in {hit.id for hit in left.sources}
    rag.add(Document(gone.text, id=gone.id))
    assert rag.ask(QUESTION, max_new_tokens=1).reuse == "cached"  # no beginning of a prompt survived either


@pytest.mark.usefixtures("own_home")
@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        ({0: True}, ("cached", 0, "the gate allows it: 0 tokens")),
        ({0: False, 2: True, 8: True}, ("linked", 4, "the gate allows it: 2 tokens")),
        ({0: False, 2: False}, ("off", None, "the gate allows nothing else: 0 tokens")),
    ],
)
def test_auto_goes_by_the_gate(
    folder: Path, model: GritModel, rag: Rag, allowed: dict[int, bool], expected: tuple[str, int | None, str]
) -> None:
    verdicts.save(
        model.fingerprint,
        [
            Verdict(
                reuse="linked" if k else "cached",
                codec="int8",
                join="whole",
                link_tokens=k,
                allowed=is_allowed,
                reason=f"{k} tokens",
            )
            for k, is_allowed in allowed.items()
        ],
    )
    way, computed, says = expected
    with Rag.open(folder, model) as judged:
        joined = {} if way != "off" else {"join": "whole"}
        answer = judged.ask(QUESTION, max_new_tokens=1, **joined)
        assert (answer.reuse, answer.reason) == (way, says)
        if computed is not None:
            question = len(model.tokens.question_prompt(QUESTION))
            assert answer.usage.prompt_tokens - answer.usage.cached_tokens == question + computed
            whole = rag.ask(QUESTION, join="whole", reuse="cached", max_new_tokens=1)
            assert answer.usage.prompt_tokens == whole.usage.prompt_tokens  # its join is the gate's
        assert judged.ask(QUESTION, reuse="cached", max_new_tokens=1).reuse == "cached"  # by name, whatever it says
        again = judged.ask(QUESTION, max_new_tokens=1, **joined)
        assert again.reuse == ("prefix" if way == "off" else way)


@pytest.mark.usefixtures("own_home")
def test_a_gate_that_cannot_be_read_forbids_nothing(
    folder: Path, model: GritModel, rag: Rag, caplog: pytest.LogCaptureFixture
) -> None:
    gates = home() / "gates"
    gates.mkdir(parents=True)
    (gates / f"{model.fingerprint}.json").write_text('{"format_version": 99}')
    with Rag.open(folder, model) as judged:
        assert judged.ask(QUESTION, max_new_tokens=1).reuse == "cached"
    assert "another format and are not used" in caplog.text


@pytest.mark.parametrize(("disk", "prefill", "way"), [(10.0, 1e9, "off"), (1e12, 1.0, "cached")])
def test_what_is_slower_to_load_than_to_read_is_read(
    folder: Path, model: GritModel, rag: Rag, disk: float, prefill: float, way: str
) -> None:
    (file,) = [rag.base.blocks.folder / f"rates-{model.fingerprint[:16]}-cpu.json"]
    file.write_text(json.dumps({"disk": disk, "prefill": prefill}))
    with Rag.open(folder, model) as measured:
        answer = measured.ask(QUESTION, max_new_tokens=4)
        assert answer.reuse == way
        assert answer.reason.startswith("loading would take" if way == "off" else "no gate")
        if way == "off":
            assert measured.ask(QUESTION, max_new_tokens=4).reuse == "prefix"  # what was read for it is kept
            measured.ask(QUESTION, top_k=2, reuse="cached", max_new_tokens=1)
            assert measured.ask(QUESTION, top_k=2, max_new_tokens=1).reuse == "cached"  # in memory: nothing to load
    assert json.loads(file.read_text()).keys() <= {"disk", "prefill"}


def test_one_document_of_causal_embeddings_is_exactly_its_prompt(folder: Path) -> None:
    model = grit_model("llama", embedding_attention="causal")
    with Rag.open(folder, model, codec="exact") as rag:
        rag.add(list(TEXTS))
        one, off = (rag.ask(QUESTION, top_k=1, reuse=reuse, max_new_tokens=8) for reuse in ("auto", "off"))
        assert (one.reuse, one.text) == ("prefix", off.text)
        assert one.usage.cached_tokens > 0 == off.usage.cached_tokens
        assert rag.ask(QUESTION, top_k=2, max_new_tokens=1).reuse == "cached"
    with Rag.open(folder.with_name("coded"), model, codec="int8") as rag:
        rag.add(list(TEXTS))
        assert rag.ask(QUESTION, top_k=1, max_new_tokens=1).reuse == "cached"  # int8 is not exactly


# -- tiers, budgets, tenants ---------------------------------------------------------------------------------------


def test_reads_are_counted_by_tier(folder: Path, model: GritModel, rag: Rag) -> None:
    with Rag.open(folder, model, budget=Budget(device=1 << 30)) as tiers:
        texts = [tiers.ask(QUESTION, reuse="cached", max_new_tokens=4).text for _ in range(3)]
        assert tiers.counts == {"disk": 3, "device": 6}
    with Rag.open(folder, model) as tiers:
        texts += [tiers.ask(QUESTION, reuse="cached", max_new_tokens=4).text for _ in range(3)]
        assert tiers.counts == {"disk": 3, "memory": 6}
    assert len(set(texts)) == 1


def test_a_full_budget_on_disk_costs_recomputing_and_no_answer(folder: Path, model: GritModel, rag: Rag) -> None:
    everything = len(TEXTS)
    whole = rag.ask(QUESTION, top_k=everything, max_new_tokens=4)
    size = max(path.stat().st_size for path in blocks(folder))
    with Rag.open(folder, model, budget=Budget(disk=2 * size, memory=0)) as small:
        blocks(folder)[0].unlink()
        first, second = (small.ask(QUESTION, top_k=everything, max_new_tokens=4) for _ in range(2))
        assert first.text == second.text == whole.text
        assert first.recomputed == 1  # writing it makes room
        assert second.recomputed >= everything - 2
        assert small.counts["evicted"] > 0
        assert sum(path.stat().st_size for path in blocks(folder)) <= 2 * size


def test_half_of_the_free_disk_is_the_budget_and_what_is_there(folder: Path, model: GritModel, rag: Rag) -> None:
    free = shutil.disk_usage(folder).free
    taken = sum(path.stat().st_size for path in blocks(folder))
    with Rag.open(folder, model) as opened:
        assert opened.base.blocks.max_bytes == pytest.approx(free // 2 + taken, rel=0.05)
    assert taken > 0


@pytest.mark.parametrize("wrong", [{"disk": -1}, {"memory": -5}, {"device": 1.5}, {"memory": "1 GB"}])
def test_budgets_that_are_none_are_refused(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(InputError, match=rf"a budget of {name}={value!r} is no number of bytes"):
        Budget(**wrong)


def test_tenants_do_not_share_key_values(folder: Path, model: GritModel, rag: Rag) -> None:
    mine = rag.ask(QUESTION, max_new_tokens=8)
    before = blocks(folder)
    with Rag.open(folder, model, tenant="other", budget=Budget(memory=0)) as other:
        first, second = (other.ask(QUESTION, max_new_tokens=8) for _ in range(2))
        assert (first.recomputed, second.recomputed) == (3, 0)
        assert first.text == second.text == mine.text
        assert other.counts["lost"] >= 3
    assert len(blocks(folder)) == len(before) + 3
    assert set(before) <= set(blocks(folder))
    with Rag.open(folder, model, budget=Budget(memory=0)) as again:
        assert again.ask(QUESTION, max_new_tokens=8).recomputed == 0
    with pytest.raises(InputError, match="tenant"):
        Rag.open(folder, model, tenant=5)  # type: ignore[arg-type]


def test_two_at_once_on_one_folder(folder: Path, model: GritModel, rag: Rag) -> None:
    """One answers while the other adds and deletes: every answer is whole, and nothing is left over."""
    errors: list[BaseException] = []

    def change() -> None:
        try:
            with Rag.open(folder, model) as other:
                for i in range(6):
                    other.add([Document(f"the fox number {i} does it", id=f"fox{i}"), Document(TEXTS[0], id="same")])
                    other.delete(f"fox{i - 1}")
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=change)
    thread.start()
    answers = []
    while thread.is_alive() or not answers:
        answers.append(rag.ask(QUESTION, max_new_tokens=2))
    thread.join()
    assert errors == []
    assert all(len(answer.sources) == 3 for answer in answers)
    assert len(rag) == len(TEXTS) + 2
    report = rag.verify()
    assert (report.damaged, report.repaired, report.documents) == ([], [], len(rag))


def test_verify_computes_what_is_missing(folder: Path, rag: Rag, model: GritModel) -> None:
    paths = blocks(folder)
    before = [path.read_bytes() for path in paths]
    paths[0].unlink()
    _flip(paths[1], paths[1])
    report = rag.verify()
    assert (report.damaged, report.missing, report.documents) == ([], 0, len(TEXTS))
    assert len([line for line in report.repaired if "were computed again" in line]) == 2
    assert [path.read_bytes() for path in paths] == before


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
