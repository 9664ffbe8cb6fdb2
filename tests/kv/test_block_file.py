from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gritkit.errors import MissingExtraError, StoreError
from gritkit.kv import block_file
from gritkit.kv.block_file import Block, Reading, UnusableError, key_of

DTYPES = ["bool", "float16", "float32", "float64", *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64))]


def numbers(shape: tuple[int, ...], dtype: str, seed: int = 0) -> NDArray[Any]:
    """Every bit pattern of the type, not-a-number and minus zero among them."""
    generator = np.random.default_rng(seed)
    if dtype == "bool":
        return generator.integers(0, 2, shape).astype(bool)
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(generator.bytes(size), dtype=dtype).reshape(shape)


def write(path: Path, block: Block, cost: float = 1.0) -> str:
    key, parts = block_file.encode(block, cost=cost)
    path.write_bytes(b"".join(parts))
    return key


def read(path: Path, key: str) -> Block | str:
    """The block, or why not."""
    outcome = block_file.read({key: str(path)}, block_file.checksum())[key]
    return str(outcome) if isinstance(outcome, UnusableError) else outcome.block()


def same(got: Block | str, put: Block) -> bool:
    """Equal to the last bit."""
    return (
        isinstance(got, Block)
        and got.fields == json.loads(json.dumps(put.fields))
        and len(got.arrays) == len(put.arrays)
        and all(
            (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())
            for x, y in zip(got.arrays, put.arrays, strict=True)
        )
    )


SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
ARRAYS = st.tuples(SHAPES, st.sampled_from(DTYPES), st.integers(0, 9)).map(lambda it: numbers(*it))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=6,
)
FIELDS = st.dictionaries(st.text(), VALUES | st.lists(st.integers(-(2**40), 2**40)), max_size=6)


@settings(deadline=None, max_examples=80)
@given(FIELDS, st.lists(ARRAYS, max_size=5).map(tuple), st.floats(0, 1e12))
@example({"ids": [1, 2], "ints": {"ids": [3]}, "rest": [2**31], "flags": [True, 1]}, (), 0.0)
def test_what_is_written_comes_back_bit_by_bit(
    tmp_path_factory: pytest.TempPathFactory, fields: dict[str, Any], arrays: tuple[NDArray[Any], ...], cost: float
) -> None:
    path = tmp_path_factory.getbasetemp() / "block.kv"
    put = Block(fields, arrays)
    key = write(path, put, cost)
    assert key == put.key == key_of(fields)
    assert same(read(path, key), put)
    assert block_file.cost_of(str(path)) == cost


@pytest.mark.parametrize("size", [64, (1 << 20) - 64, 1 << 20, (1 << 20) + 64, 9 << 20, (33 << 20) + 192])
def test_blocks_of_many_chunks_come_back_aligned(tmp_path: Path, size: int) -> None:
    put = Block({"ids": list(range(16_000))}, (numbers((size - 64,), "uint8"), numbers((2, 5), "uint16")))
    key = write(tmp_path / "a", put)
    got = read(tmp_path / "a", key)
    assert same(got, put)
    assert isinstance(got, Block)
    for array in got.arrays:
        assert array.flags.c_contiguous
        assert array.flags.writeable  # torch warns of others
        assert array.ctypes.data % 64 == 0
    assert got.num_bytes == put.num_bytes == size - 44


def test_arrays_that_are_not_contiguous_are_stored_alone(tmp_path: Path) -> None:
    whole = numbers((6, 8), "float32")
    put = Block({}, (whole[:, ::2], whole.T))
    assert same(read(tmp_path / "a", write(tmp_path / "a", put)), put)


def test_a_type_that_files_do_not_hold_is_refused() -> None:
    for array in (np.array(["text"]), np.array([object()]), np.zeros(2, ">f4"), np.zeros(2, "datetime64[s]")):
        with pytest.raises(StoreError, match="cannot be stored"):
            block_file.encode(Block({}, (array,)), cost=0)
    with pytest.raises(StoreError, match="too large"):
        block_file.encode(Block({"text": "x" * (1 << 20)}, ()), cost=0)


def test_the_key_depends_on_every_field() -> None:
    same_key = {"model": "a", "ids": [1, 2, 3], "salt": ""}
    assert key_of(same_key) == key_of(dict(reversed(same_key.items()))) == key_of({**same_key, "ids": (1, 2, 3)})
    others: list[dict[str, Any]] = [
        same_key,
        {**same_key, "model": "b"},
        {**same_key, "ids": [1, 23]},
        {**same_key, "ids": [3, 2, 1]},
        {**same_key, "ids": [1, 2, 3.0]},
        {**same_key, "ids": [True, 2, 3]},
        {**same_key, "ids": [1, 2, 3 + 2**32]},
        {**same_key, "ids": {"ids": [1, 2, 3]}},
        {"model": "a", "salt": "", "idx": [1, 2, 3]},
        {"model": "a", "salt": "", "ids": [1], "idx": [2, 3]},
        {"model": "a", "salt": "", "ids": [1, 2], "idx": [3]},
        {"model": "a", "ids": [1, 2, 3], "salt": None},
        {"model": "a", "ids": [1, 2, 3]},
        {"model": "a", "ids": [], "salt": ""},
        {},
    ]
    keys = [key_of(fields) for fields in others]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 64 and set(key) <= set("0123456789abcdef") for key in keys)


def test_the_key_is_the_digest_that_the_format_states(monkeypatch: pytest.MonkeyPatch) -> None:
    from hashlib import blake2b

    text = b'{"format":2,"ints":{"a":1,"ids":3},"rest":{"name":"x"}}'
    form = text + struct.pack("<4i", -5, 1, 2, 3)
    key = key_of({"name": "x", "ids": [1, 2, 3], "a": [-5]})
    assert key == blake2b(form, digest_size=32).hexdigest()
    monkeypatch.setattr(block_file, "FORMAT_VERSION", 3)
    assert key_of({"name": "x", "ids": [1, 2, 3], "a": [-5]}) != key


# Files that are not what they should be


@pytest.fixture(scope="module")
def block() -> Block:
    return Block({"model": "m", "ids": list(range(20))}, (numbers((3, 50), "int8"), numbers((3, 2), "float16")))


@pytest.fixture(scope="module")
def chunky(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Block, bytes]:
    """A small block of ten chunks: (key, block, file)."""
    path = tmp_path_factory.mktemp("chunky") / "a"
    block = Block({"ids": list(range(99))}, (numbers((9, 1 << 12), "uint8"), numbers((7,), "float32")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_file, "CHUNK_BYTES", 1 << 12)
        key = write(path, block)
    return key, block, path.read_bytes()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Block, bytes]:
    """A block of more than two chunks, which other threads help to read: (key, block, file)."""
    path = tmp_path_factory.mktemp("large") / "a"
    block = Block({"ids": list(range(999))}, (numbers((9, 1 << 20), "uint8"), numbers((7,), "float32")))
    key = write(path, block)
    return key, block, path.read_bytes()


def test_a_flipped_bit_anywhere_is_found(tmp_path: Path, block: Block) -> None:
    path = tmp_path / "a"
    key = write(path, block)
    whole = path.read_bytes()
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        assert isinstance(read(path, key), str), place


def test_a_torn_file_is_found(tmp_path: Path, block: Block) -> None:
    path = tmp_path / "a"
    key = write(path, block)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert isinstance(read(path, key), str), length
    path.write_bytes(whole + bytes(64))
    assert "torn" in str(read(path, key))


@dataclass(frozen=True)
class Harm:
    """Something done to a file at a place, given as a share of its length."""

    what: str
    place: float
    length: int
    byte: int

    def __call__(self, data: bytes) -> bytes:
        at = int(self.place * len(data))
        filler = bytes([self.byte]) * self.length
        return {
            "flip": data[:at] + bytes(b ^ (1 << self.byte % 8) for b in data[at : at + 1]) + data[at + 1 :],
            "overwrite": (data[:at] + filler + data[at + self.length :])[: len(data)],
            "cut": data[:at],
            "remove": data[:at] + data[at + self.length :],
            "insert": data[:at] + filler + data[at:],
            "repeat": data[: at + self.length] + data[at:],
        }[self.what]


HARMS = st.builds(
    Harm,
    st.sampled_from(["flip", "overwrite", "cut", "remove", "insert", "repeat"]),
    st.floats(0, 1) | st.floats(0, 0.001),
    st.integers(1, 5000),
    st.sampled_from([0, 1, 7, 255]),
)


@settings(deadline=None, max_examples=200)
@given(st.lists(HARMS, min_size=1, max_size=3))
def test_harm_gives_nothing_and_never_other_numbers(
    tmp_path_factory: pytest.TempPathFactory, chunky: tuple[str, Block, bytes], harms: list[Harm]
) -> None:
    key, block, data = chunky
    harmed = data
    for harm in harms:
        harmed = harm(harmed)
    path = tmp_path_factory.getbasetemp() / "harmed.kv"
    path.write_bytes(harmed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_file, "_FIRST_READ", 1 << 10)
        patch.setattr(block_file, "THREAD_BYTES", 1 << 12)  # so that threads help nevertheless
        got = read(path, key)
    assert same(got, block) if harmed == data else isinstance(got, str)


def test_another_block_in_its_place_is_found(tmp_path: Path, block: Block) -> None:
    key = write(tmp_path / "a", block)
    write(tmp_path / "a", Block({**block.fields, "model": "n"}, block.arrays))
    assert read(tmp_path / "a", key) == "it is another block"


Seal = Callable[..., str]


@pytest.fixture
def forged(tmp_path: Path, block: Block) -> Seal:
    """Why a file is not read whose checksum is right, and whose key too where it is not given: somebody wrote it so."""
    key = write(tmp_path / "a", block)
    magic, _, version, *sizes, cost = block_file._PREFIX.unpack_from(whole := (tmp_path / "a").read_bytes())
    start = block_file._PREFIX.size
    text, ints, about = (whole[start + sum(sizes[:i]) :][: sizes[i]] for i in range(3))
    payload = whole[len(whole) - sizes[4] :]

    def read_forged(**changes: Any) -> str:
        new = {"magic": magic, "version": version, "text": text, "ints": ints, "about": about, "chunk": sizes[3],
               "payload": payload, "cost": cost, "stated": None} | changes  # fmt: skip
        sums = [xxhash.xxh3_64_intdigest(new["payload"])] if new["payload"] else []
        head = new["text"] + new["ints"] + new["about"] + struct.pack(f"<{len(sums)}Q", *sums)
        head += bytes(-(start + len(head)) % 64)
        stated = new["stated"] or (len(new["text"]), len(new["ints"]), len(new["about"]), new["chunk"],
                                   len(new["payload"]))  # fmt: skip
        sealed = block_file._PREFIX.pack(new["magic"], 0, new["version"], *stated, new["cost"])[16:] + head
        prefix = new["magic"] + struct.pack("<Q", xxhash.xxh3_64_intdigest(sealed))
        (tmp_path / "a").write_bytes(prefix + sealed + new["payload"])
        its_key = key if changes.keys() <= {"about"} else block_file._key(new["text"] + new["ints"])
        got = read(tmp_path / "a", its_key)
        return got if isinstance(got, str) else "whole"

    assert read_forged() == "whole"
    return read_forged


def test_a_forged_head_is_no_more_than_useless(forged: Seal) -> None:
    assert "not a block" in forged(magic=b"safetens")
    assert "format version 1" in forged(version=1)
    assert "format version 3" in forged(version=3)
    assert forged(cost=float("nan")) == "whole"  # which is for ``cost_of`` to bear
    for sizes in [
        (1 << 21, 0, 0, 1 << 20, 0),
        (2**32 - 1, 2**32 - 1, 2**32 - 1, 1 << 20, 2**64 - 1),
        (10, 0, 10, 1, 1 << 40),
        (10, 0, 10, 0, 1),
        (10, 0, 10, 2**32 - 1, 1),
        (0, 0, 0, 1 << 20, 0),
    ]:
        assert forged(stated=sizes) != "whole", sizes
    for text in (b"", b"{", b"[]", b"{}", b'{"rest":5,"ints":{}}', b'{"rest":{},"ints":5}', b"[" * 100_000, b"\xff",
                 b'{"rest":{},"ints":{"a":-1}}', b'{"rest":{},"ints":{"a":1e400}}', b'{"rest":{},"ints":{"a":"x"}}',
                 b'{"rest":{},"ints":{"a":99999999999999999999}}', b"1" * 5000):  # fmt: skip
        assert "cannot be understood" in forged(text=text), text


@pytest.mark.parametrize(
    "arrays",
    [
        5,
        [5],
        [[]],
        [["int8", [3, 50]]],
        [["int8", [3, 50]], ["float16", [3, 2], 1]],
        [["int8", [3, 50]], ["float16", [3, 99]]],
        [["int8", [3, 50]], ["object", [3, 2]]],
        [["int8", [3, 50]], ["V8", [3, 2]]],
        [["int8", [3, 50]], [["int8"], [3, 2]]],
        [["int8", [3, 50]], ["float16", [-3, -2]]],
        [["int8", [3, 50]], ["float16", [3.0, 2]]],
        [["int8", [3, 50]], ["float16", [True, 6]]],
        [["int8", [3, 50]], ["float16", "32"]],
        [["int8", [3, 50]], ["float16", [1] * 70]],
        [["int8", [2**70, 0]], ["int8", [256]]],
        [["int8", [2**70, 2**70]]],
        [["float64", [2**61 + 32]]],
        [["int8", []]] * 100_000,
    ],
)
def test_forged_shapes_are_no_more_than_useless(forged: Seal, arrays: Any) -> None:
    assert forged(about=json.dumps({"byteorder": sys.byteorder, "arrays": arrays}).encode()) != "whole"


def test_a_block_of_a_machine_of_the_other_byte_order_is_not_read(forged: Seal) -> None:
    assert "middle-endian" in forged(about=b'{"byteorder":"middle","arrays":[]}')
    assert "cannot be understood" in forged(about=b"[]")
    assert "cannot be understood" in forged(about=b"{}")


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"x" * 1000)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "around").symlink_to(tmp_path / "around")
    for name in ("pipe", "folder", "link", "around", "file"):
        assert isinstance(read(tmp_path / name, "ab" * 32), str), name
        assert block_file.cost_of(str(tmp_path / name)) == 0, name
    assert read(tmp_path / "none", "ab" * 32) == "there is no such file"
    assert block_file.cost_of(str(tmp_path / "none")) == 0


def test_a_file_with_a_hole_of_terabytes_is_useless(tmp_path: Path, block: Block) -> None:
    key = write(tmp_path / "a", block)
    with (tmp_path / "a").open("r+b") as file:
        file.truncate(1 << 43)
    assert isinstance(read(tmp_path / "a", key), str)


def test_a_file_that_is_cut_off_while_it_is_read_is_useless(tmp_path: Path, large: tuple[str, Block, bytes]) -> None:
    key, _, data = large
    path = tmp_path / "a"
    path.write_bytes(data)
    reading = Reading(str(path), key, block_file.checksum())
    os.truncate(path, len(data) - 1)
    for number in range(reading.num_chunks):
        reading.read_chunk(number)
    reading.close()
    assert reading.failure == "it became shorter while it was read"


def test_a_forked_child_can_read(tmp_path: Path, large: tuple[str, Block, bytes]) -> None:
    key, _, data = large
    (tmp_path / "a").write_bytes(data)
    code = """
import os, sys
from gritkit.kv import block_file
key, path = sys.argv[1:]
read = lambda: block_file.read({key: path}, block_file.checksum())[key].block().num_bytes
before, pool = read(), block_file.pool()
child = os.fork()
if not child:
    os._exit(0 if read() == before and block_file.pool() is not pool else 1)  # its threads are not in the child
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", code, key, str(tmp_path / "a")], check=True, timeout=60)


def test_without_xxhash_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xxhash", None)
    with pytest.raises(MissingExtraError, match=r"gritkit\[rag\]"):
        block_file.checksum()
