from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path

import pytest
import torch

from gritkit.errors import MissingExtraError, StoreError
from gritkit.kv import blocks
from gritkit.kv.blocks import BlockStore
from gritkit.kv.dockv import DocKV

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def document(length: int = 7, dtype: torch.dtype = torch.float32, seed: int = 0) -> DocKV:
    """Two layers of different heads, as of a model with mixed layers; keys wider than values."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = (
        tuple(torch.randn(heads, length, size, generator=generator).to(dtype) for heads in (2, 3)) for size in (6, 4)
    )
    return DocKV(tuple(range(5, 5 + length)), 1, keys, values)


@pytest.fixture
def store(tmp_path: Path) -> BlockStore:
    return BlockStore(tmp_path / "blocks", "model-a")


def same(a: DocKV | None, b: DocKV) -> bool:
    return (
        a is not None
        and (a.ids, a.num_bos) == (b.ids, b.num_bos)
        and all(
            x.dtype == y.dtype and x.shape == y.shape and torch.equal(x, y)
            for x, y in zip((*a.keys, *a.values), (*b.keys, *b.values), strict=True)
        )
    )


def path_of(store: BlockStore, key: str) -> Path:
    return store.folder / key[:2] / key[2:4] / f"{key}.kv"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 7, 130])
def test_what_is_put_comes_back_bit_by_bit(store: BlockStore, dtype: torch.dtype, length: int) -> None:
    put = document(length, dtype)
    put.values[0][0, 0, 0] = -0.0
    put.values[0][0, 0, 1] = float("inf")
    key = store.put(put)
    got = store.get(key)
    assert same(got, put)
    assert got is not None
    assert torch.signbit(got.values[0][0, 0, 0])
    assert key == store.key_of(put.ids, put.num_bos)
    assert store.counts == {"hit": 1}


def test_views_of_a_larger_tensor_are_stored_alone(store: BlockStore) -> None:
    whole = document(9)
    part = whole.after_first()  # strides of the whole
    assert not part.keys[0].is_contiguous()
    assert same(store.get(store.put(part)), part)


def test_keys_sizes_and_deletion(store: BlockStore) -> None:
    assert list(store.keys()) == []
    assert store.num_bytes == 0
    short, long = document(3), document(9)
    keys = store.put_many([short, long])
    assert sorted(store.keys()) == sorted(keys)
    assert store.num_bytes == sum(path_of(store, key).stat().st_size for key in keys)
    assert 0 < path_of(store, keys[1]).stat().st_size - long.num_bytes < 1024
    path_of(store, keys[0]).with_name(f".{keys[0]}.kv.abc.tmp").write_bytes(b"left by a killed writer")
    assert sorted(store.keys()) == sorted(keys)
    assert store.delete(keys[0])
    assert not store.delete(keys[0])
    assert list(store.keys()) == [keys[1]]
    assert same(store.get(keys[1]), long)


def test_the_key_depends_on_everything_the_numbers_depend_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(model: str = "a", salt: str = "", ids: tuple[int, ...] = (1, 2, 3), num_bos: int = 1) -> str:
        return BlockStore(tmp_path, model, salt=salt).key_of(ids, num_bos)

    keys = [key(), key(model="b"), key(salt="s"), key(ids=(1, 23)), key(ids=(3, 2, 1)), key(num_bos=0)]
    monkeypatch.setattr(blocks, "CODEC", "int8")
    keys.append(key())
    monkeypatch.setattr(blocks, "FORMAT_VERSION", 2)
    keys.append(key())
    assert len(set(keys)) == len(keys)
    assert all(len(one) == 64 for one in keys)


def damaged(store: BlockStore, key: str, caplog: pytest.LogCaptureFixture) -> str:
    """The warning of a read that gives nothing."""
    before = sum(store.counts.values())
    caplog.clear()
    with caplog.at_level(logging.WARNING, "gritkit"):
        assert store.get(key) is None
    assert sum(store.counts.values()) == before + 1
    assert store.counts["hit"] == 0
    (record,) = caplog.records
    assert record.name == "gritkit"
    return record.getMessage()


def test_a_missing_block_is_a_counted_warning(store: BlockStore, caplog: pytest.LogCaptureFixture) -> None:
    assert "no such file" in damaged(store, "ab" * 32, caplog)
    assert "missing blocks so far: 2" in damaged(store, "cd" * 32, caplog)
    assert store.counts == {"missing": 2}


def test_a_torn_file_is_none(store: BlockStore, caplog: pytest.LogCaptureFixture) -> None:
    key = store.put(document())
    path = path_of(store, key)
    whole = path.read_bytes()
    for length in [*range(0, 70), *range(70, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        damaged(store, key, caplog)
    path.write_bytes(whole + b"\0")
    damaged(store, key, caplog)
    store.put(document())  # what a recompute does
    assert same(store.get(key), document())


def test_a_flipped_bit_anywhere_is_none(store: BlockStore, caplog: pytest.LogCaptureFixture) -> None:
    key = store.put(document(3))
    path = path_of(store, key)
    whole = path.read_bytes()
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        damaged(store, key, caplog)


def test_a_block_of_another_document_model_or_tenant_is_none(
    store: BlockStore, caplog: pytest.LogCaptureFixture
) -> None:
    mine = store.put(document(3))
    other_document = store.put(document(4))
    shutil.copy(path_of(store, other_document), path_of(store, mine))
    assert "another document" in damaged(store, mine, caplog)
    for stranger in (BlockStore(store.folder, "model-b"), BlockStore(store.folder, "model-a", salt="tenant")):
        theirs = stranger.put(document(3))
        damaged(store, theirs, caplog)  # asked for by its own key
        shutil.copy(path_of(store, theirs), path_of(store, mine))
        damaged(store, mine, caplog)  # put in the place of mine


def sealed(data: bytes) -> bytes:
    """With a right checksum: a file that somebody wrote so."""
    return data + blocks._checksum(data)


def test_a_file_of_another_format_is_none(
    store: BlockStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = store.put(document())
    path = path_of(store, key)
    whole = path.read_bytes()[:-16]
    fixed, start = blocks._FIXED, blocks._FIXED.size
    magic, version, size = fixed.unpack(whole[:start])
    rest = whole[start:]
    path.write_bytes(sealed(fixed.pack(b"safetens", version, size) + rest))
    assert "not a block" in damaged(store, key, caplog)
    path.write_bytes(sealed(fixed.pack(magic, version + 1, size) + rest))
    assert "format version 2" in damaged(store, key, caplog)
    path.write_bytes(sealed(fixed.pack(magic, version, 1 << 31) + rest))
    assert "header" in damaged(store, key, caplog)
    for old, new in [
        (b'"float32"', b'"object_"'),
        (b"[2, 7, 6]", b"[2, 7, 9]"),
        (b"[2, 7, 6]", b"[7, 2, 6]"),
        (b"[2, 7, 6]", b"[2,-7, 6]"),
        (b"little", b"BIGEND"),
        (b'"tensors"', b'"Tensors"'),
        (b'{"key"', b'{"key '),
    ]:
        assert old in whole
        path.write_bytes(sealed(whole.replace(old, new, 1)))
        damaged(store, key, caplog)
    header = json.dumps({"key": 5, "byteorder": sys.byteorder, "tensors": []}).encode()
    path.write_bytes(sealed(fixed.pack(magic, version, len(header)) + header))
    damaged(store, key, caplog)
    path.unlink()
    path.mkdir()
    damaged(store, key, caplog)


def test_a_key_never_becomes_another_path(store: BlockStore) -> None:
    for key in ("../../etc/passwd", "", "A" * 64, "ab", "/" * 64):
        with pytest.raises(ValueError, match="not the key"):
            store.get(key)


def test_a_disk_that_refuses_is_one_line(store: BlockStore) -> None:
    store.folder.write_text("a file where the folder should be")
    with pytest.raises(StoreError, match="cannot write a block"):
        store.put(document())


def test_without_xxhash_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xxhash", None)
    with pytest.raises(MissingExtraError, match=r"gritkit\[rag\]"):
        BlockStore(tmp_path, "model")
