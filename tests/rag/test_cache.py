from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from gritkit.kv.block_file import Block
from gritkit.kv.blocks import BlockStore
from gritkit.kv.codecs import StoredKV
from gritkit.kv.dockv import DocKV, ReadDocument
from gritkit.model import GritModel
from gritkit.rag.cache import DocumentCache
from gritkit.rag.coding import BlockCoder
from gritkit.rag.rates import Rates
from tests.models import TEXTS, shared_model

MUCH = 1 << 30


@pytest.fixture(scope="module")
def model() -> GritModel:
    return shared_model("llama")


@pytest.fixture(scope="module")
def documents(model: GritModel) -> list[DocKV]:
    return model.read([f"{text} again and again" for text in TEXTS])[1]


@pytest.fixture
def blocks(tmp_path: Path) -> BlockStore:
    return BlockStore(tmp_path / "blocks")


@pytest.fixture
def keys(model: GritModel, blocks: BlockStore, documents: list[DocKV]) -> list[str]:
    """Of the documents, which are on disk."""
    return blocks.put_many([BlockCoder(model, "int8").block(one) for one in documents])


def cache_of(
    model: GritModel, blocks: BlockStore, *, memory: int = MUCH, device: int = 0, salt: str = ""
) -> DocumentCache:
    rates = Rates(blocks.folder.parent / "rates.json")
    return DocumentCache(BlockCoder(model, "int8", salt), blocks, rates, memory_bytes=memory, device_bytes=device)


@pytest.fixture
def cache(model: GritModel, blocks: BlockStore) -> DocumentCache:
    return cache_of(model, blocks)


def same(found: ReadDocument | None, document: DocKV) -> bool:
    """Whether it is the document, within the codec's error."""
    assert found is not None
    assert (found.ids, found.num_bos, found.num_prompt) == (document.ids, document.num_bos, document.num_prompt)
    pairs = [
        pair
        for index in range(document.num_layers)
        for pair in zip(
            found.layer(index, torch.device("cpu")), document.layer(index, torch.device("cpu")), strict=True
        )
    ]
    return all(float((one - other).abs().max()) <= 0.005 * float(other.abs().max()) for one, other in pairs)


def test_what_is_found_lower_is_kept_higher(
    model: GritModel, blocks: BlockStore, keys: list[str], documents: list[DocKV]
) -> None:
    cache = cache_of(model, blocks, device=MUCH)
    assert all(map(same, cache.get_many(keys[:3]), documents))
    assert cache.counts == {"disk": 3}
    assert all(map(same, cache.get_many(keys[:4]), documents))
    assert cache.counts == {"disk": 4, "device": 3}
    assert all(isinstance(one, DocKV) for one in cache.get_many(keys))  # decoded
    coded = cache_of(model, blocks)
    assert all(isinstance(one, StoredKV) for one in coded.get_many(keys))
    coded.get_many([keys[0], keys[0], keys[1]])
    assert coded.counts == {"disk": 5, "memory": 2}  # one read for each, however often it is named


def test_the_order_is_that_of_the_keys(cache: DocumentCache, keys: list[str], documents: list[DocKV]) -> None:
    cache.get_many(keys[1:2])
    order = [3, 1, 0, 3, 2]
    found = cache.get_many([keys[index] for index in order])
    assert [one.ids for one in found if one] == [documents[index].ids for index in order]
    assert cache.get_many([]) == []


def test_tiers_stay_within_their_bytes(
    model: GritModel, blocks: BlockStore, keys: list[str], documents: list[DocKV]
) -> None:
    sizes = {key: one.num_bytes for key, one in zip(keys, cache_of(model, blocks).get_many(keys), strict=True) if one}
    cache = cache_of(model, blocks, memory=sizes[keys[0]] + sizes[keys[1]])
    cache.get_many(keys[:2])
    cache.get_many(keys[:2])
    assert cache.counts == {"disk": 2, "memory": 2}
    cache.get_many(keys[2:4])
    cache.get_many(keys)
    assert cache.counts["memory"] < 2 + len(keys)
    assert cache.counts["disk"] > len(keys)
    nothing = cache_of(model, blocks, memory=0)
    for _ in range(2):
        assert all(map(same, nothing.get_many(keys), documents))
    assert nothing.counts == {"disk": 2 * len(keys)}
    one = cache_of(model, blocks, memory=0, device=documents[0].num_bytes)
    for _ in range(2):
        assert same(one.get_many(keys[:1])[0], documents[0])
    assert one.counts == {"disk": 1, "device": 1}


def test_a_smaller_budget_lets_go_at_once(cache: DocumentCache, keys: list[str], documents: list[DocKV]) -> None:
    cache.get_many(keys)
    cache.keep_prefix(documents[0])
    cache.resize(0)
    assert not cache.has_prefix(documents[0].ids)
    assert all(map(same, cache.get_many(keys), documents))
    assert cache.counts == {"disk": 2 * len(keys)}
    cache.resize(MUCH)
    cache.get_many(keys)
    cache.get_many(keys)
    assert cache.counts == {"disk": 3 * len(keys), "memory": len(keys)}


def test_what_is_missing_or_damaged_is_none_and_counted(
    cache: DocumentCache, blocks: BlockStore, keys: list[str], documents: list[DocKV], caplog: pytest.LogCaptureFixture
) -> None:
    paths = [blocks.folder / key[:2] / f"{key}.kv" for key in keys]
    paths[0].unlink()
    paths[1].write_bytes(paths[1].read_bytes()[:-1])
    with caplog.at_level(logging.WARNING, "gritkit"):
        found = cache.get_many(keys[:3])
    assert [one is None for one in found] == [True, True, False]
    assert cache.counts == {"lost": 2, "disk": 1}
    assert blocks.counts["missing"] == blocks.counts["damaged"] == 1
    assert len(caplog.records) == 2
    for document in documents[:2]:
        assert same(cache.keep(document), document)
    assert all(map(same, cache.get_many(keys[:3]), documents))
    assert cache.counts == {"lost": 2, "disk": 1, "memory": 3}
    assert all(blocks.verify(key) is None for key in keys)


def test_an_empty_key_is_a_document_that_must_be_read(cache: DocumentCache, keys: list[str]) -> None:
    assert [one is None for one in cache.get_many(["", keys[0]])] == [True, False]
    assert cache.seconds_to_load([""]) == 0
    cache.read_ahead(["", keys[0]])


def test_what_is_kept_again_is_what_is_read_back(
    cache: DocumentCache, blocks: BlockStore, documents: list[DocKV]
) -> None:
    """So that an answer after a loss is the answer before it."""
    kept = cache.keep(documents[0])
    key = cache.coder.key(documents[0].ids, documents[0].num_bos, documents[0].num_prompt)
    block = blocks.get(key)
    assert block is not None
    back = cache.coder.document(block)
    assert back is not None
    for index in range(back.num_layers):
        for one, other in zip(
            kept.layer(index, torch.device("cpu")), back.layer(index, torch.device("cpu")), strict=True
        ):
            assert torch.equal(one, other)


def test_a_disk_that_refuses_is_a_warning(
    model: GritModel, tmp_path: Path, documents: list[DocKV], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = cache_of(model, BlockStore(tmp_path / "file" / "blocks"))
    assert same(cache.keep(documents[0]), documents[0])
    assert "are not kept: cannot write a block" in caplog.text


def test_whole_blocks_with_other_arrays_are_dropped(
    cache: DocumentCache, blocks: BlockStore, documents: list[DocKV]
) -> None:
    """Named as this model names them, whole by their sums, and not what it would have written."""
    whole = cache.coder.block(documents[0])
    key = blocks.put(Block(whole.fields, whole.arrays[:-2]))
    assert key == whole.key
    assert cache.get_many([key]) == [None]
    assert cache.counts == {"lost": 1}
    assert not blocks.contains(key)


def test_another_tenants_blocks_are_out_of_reach_and_left_alone(
    model: GritModel, blocks: BlockStore, keys: list[str], documents: list[DocKV]
) -> None:
    other = cache_of(model, blocks, device=MUCH, salt="other")
    assert other.get_many(keys) == [None] * len(keys)
    assert other.counts == {"lost": len(keys)}
    assert all(blocks.contains(key) for key in keys)
    other.keep(documents[0])
    mine = other.coder.key(documents[0].ids, documents[0].num_bos, documents[0].num_prompt)
    assert mine not in keys
    assert same(other.get_many([mine])[0], documents[0])


def test_beginnings_of_prompts_are_in_memory_alone(
    model: GritModel, cache: DocumentCache, blocks: BlockStore, documents: list[DocKV]
) -> None:
    ids = documents[0].ids
    assert cache.prefix(ids) is None
    assert not cache.has_prefix(ids)
    cache.keep_prefix(documents[0])
    assert cache.prefix(list(ids)) is documents[0]
    assert cache.has_prefix(ids)
    assert not cache.has_prefix(ids[:-1])
    assert list(blocks.keys()) == []
    small = cache_of(model, blocks, memory=4 * documents[0].num_bytes - 4)
    small.keep_prefix(documents[0])
    assert not small.has_prefix(ids)  # they have a quarter more


def test_what_is_dropped_is_gone_from_every_tier(
    model: GritModel, blocks: BlockStore, keys: list[str], documents: list[DocKV]
) -> None:
    cache = cache_of(model, blocks, device=MUCH)
    cache.get_many(keys)
    cache.keep_prefix(documents[0])
    cache.drop(keys[:2])
    blocks.delete_many(keys[:2])
    assert not cache.has_prefix(documents[0].ids)
    assert [one is None for one in cache.get_many(keys[:3])] == [True, True, False]


def test_how_long_loading_takes_is_what_was_measured(
    model: GritModel, blocks: BlockStore, keys: list[str], documents: list[DocKV]
) -> None:
    rates = Rates(blocks.folder / "rates.json")
    cache = DocumentCache(BlockCoder(model, "int8"), blocks, rates, memory_bytes=MUCH, device_bytes=0)
    assert cache.seconds_to_load(keys) is None
    rates.measured("disk", 1 << 20, 1.0)
    on_disk = sum(blocks.size_of(key) for key in keys)
    assert cache.seconds_to_load([*keys, keys[0]]) == pytest.approx(on_disk / (1 << 20))
    cache.get_many(keys[:2])
    left = sum(blocks.size_of(key) for key in keys[2:])
    assert cache.seconds_to_load(keys) == pytest.approx(rates.seconds("disk", left))
    assert cache.seconds_to_load(keys[:2]) == 0  # in memory
    assert cache.seconds_to_load([]) == 0


def test_loads_are_measured(model: GritModel, blocks: BlockStore) -> None:
    long = model.read(["many words " * 40, "many more words " * 30])[1]
    keys = blocks.put_many([BlockCoder(model, "exact").block(one) for one in long])
    rates = Rates(blocks.folder / "rates.json")
    cache = DocumentCache(BlockCoder(model, "exact"), blocks, rates, memory_bytes=0, device_bytes=0)
    cache.get_many(keys)
    assert (rates.seconds("disk", 1) or 0) > 0
