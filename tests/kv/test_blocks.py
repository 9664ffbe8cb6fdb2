from __future__ import annotations

import logging
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gritkit.errors import InputError, MissingExtraError, StoreError
from gritkit.kv import blocks
from gritkit.kv.blocks import Block, BlockStore, key_of


def block(seed: int = 0, size: int = 1000, num_ids: int = 10) -> Block:
    generator = np.random.default_rng(seed)
    arrays = (generator.integers(-128, 128, (size // 10, 10), dtype=np.int8), np.array([seed], np.float32))
    return Block({"model": "m", "ids": list(range(seed, seed + num_ids))}, arrays)


def same(got: Block | None, put: Block) -> bool:
    return (
        got is not None
        and (got.fields, len(got.arrays)) == (put.fields, len(put.arrays))
        and all(map(np.array_equal, got.arrays, put.arrays))
    )


@pytest.fixture
def store(tmp_path: Path) -> BlockStore:
    return BlockStore(tmp_path / "new" / "blocks")


def path_of(store: BlockStore, key: str) -> Path:
    return store.folder / key[:2] / f"{key}.kv"


def age(store: BlockStore, key: str, seconds: float) -> None:
    """Let a block have been used last so long ago."""
    then = time.time() - seconds
    os.utime(path_of(store, key), (then, then))


def temporary_files(store: BlockStore) -> list[Path]:
    return [path for path in store.folder.rglob("*") if path.is_file() and path.suffix != ".kv"]


def program(code: str, *arguments: str) -> list[str]:
    """The command that runs some Python."""
    prelude = "import sys\nimport numpy as np\nfrom pathlib import Path\nfrom gritkit.kv.blocks import *\n"
    return [sys.executable, "-c", prelude + code, *arguments]


def output(command: list[str], **options: Any) -> list[str]:
    """The lines that it prints."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60, **options)
    return str(done.stdout).splitlines()


def test_it_imports_without_torch() -> None:
    assert output(program("print('torch' in sys.modules)")) == ["False"]


# Putting and getting


def test_what_is_put_comes_back(store: BlockStore) -> None:
    put = block()
    key = store.put(put)
    assert key == put.key == key_of(put.fields)
    assert same(store.get(key), put)
    assert store.contains(key)
    assert store.verify(key) is None
    assert store.counts == {"hit": 1}
    assert temporary_files(store) == []


def test_many_come_back_in_the_order_asked(store: BlockStore) -> None:
    put = [block(number) for number in range(70)]
    keys = store.put_many(put)
    assert keys == [one.key for one in put]
    asked = [keys[69], "ab" * 32, keys[3], keys[69], *keys]
    got = store.get_many(asked)
    assert got[1] is None
    for index, number in [(0, 69), (2, 3), (3, 69), *((4 + number, number) for number in range(70))]:
        assert same(got[index], put[number])
    assert store.counts == {"hit": 70, "missing": 1}
    assert store.get_many([]) == []
    assert store.put_many([]) == []


def test_keys_sizes_and_deletion(store: BlockStore) -> None:
    assert list(store.keys()) == []
    assert store.num_bytes == 0
    keys = store.put_many([block(0, 100), block(1, 5000), block(2)])
    (store.folder / "of somebody else").mkdir()
    (path_of(store, keys[0]).parent / "notes.kv").write_bytes(b"not a block")
    assert sorted(store.keys()) == sorted(keys)
    assert store.num_bytes == sum(path_of(store, key).stat().st_size for key in keys)
    assert 0 < store.size_of(keys[1]) - block(1, 5000).num_bytes < 1024
    assert store.delete(keys[0])
    assert not store.delete(keys[0])
    assert (store.contains(keys[0]), store.size_of(keys[0])) == (False, 0)
    assert sorted(store.keys()) == sorted(keys[1:])
    assert store.delete_many(keys) == 2
    assert list(store.keys()) == []


def test_a_whole_block_stays_and_counts_as_used(store: BlockStore) -> None:
    key = store.put(block())
    age(store, key, 1000)
    before = path_of(store, key).stat()
    assert store.put(block()) == key
    after = path_of(store, key).stat()
    assert after.st_ino == before.st_ino
    assert time.time() - after.st_mtime < 100
    assert store.counts == {}


def test_a_damaged_block_is_written_again(store: BlockStore) -> None:
    key = store.put(block())
    path = path_of(store, key)
    path.write_bytes(path.read_bytes()[:-1])
    assert "torn" in str(store.verify(key))
    store.put(block())
    assert store.verify(key) is None


def test_it_is_on_the_disk_before_put_returns(store: BlockStore, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    def fsync(fd: int) -> None:
        done.append(("flush", os.readlink(f"/proc/self/fd/{fd}")))
        flush(fd)

    def replace(old: Any, new: Any) -> None:
        done.append(("rename", str(new)))
        assert ("flush", str(old)) in done
        rename(old, new)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("what a descriptor is open on shows in /proc")
    flush, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    keys = store.put_many([block(0), block(1), block(2)])
    for key in keys:
        path = path_of(store, key)
        renamed = done.index(("rename", str(path)))
        assert ("flush", str(path.parent)) in done[renamed:]
    made = [("flush", str(folder)) for folder in (store.folder, store.folder.parent, store.folder.parent.parent)]
    assert set(made) <= set(done)  # the entries of the folders themselves
    done.clear()
    store.put(block(0))  # another writer may have renamed it and not flushed yet
    assert ("flush", str(path_of(store, keys[0]).parent)) in done
    done.clear()
    store.delete(keys[0])
    assert done == [("flush", str(path_of(store, keys[0]).parent))]


# What is not there or not whole


def lost(store: BlockStore, key: str, caplog: pytest.LogCaptureFixture) -> str:
    """The warning of a read that gives nothing."""
    before = store.counts.total()
    caplog.clear()
    with caplog.at_level(logging.WARNING, "gritkit"):
        assert store.get(key) is None
    assert store.counts.total() == before + 1
    (record,) = caplog.records
    assert record.name == "gritkit"
    return record.getMessage()


def test_a_missing_block_is_a_counted_warning(store: BlockStore, caplog: pytest.LogCaptureFixture) -> None:
    assert "no such file" in lost(store, "ab" * 32, caplog)
    assert "missing blocks so far: 2" in lost(store, "cd" * 32, caplog)
    assert store.counts == {"missing": 2}
    assert store.verify("ab" * 32) == "there is no such file"


def test_a_damaged_block_is_a_counted_warning(store: BlockStore, caplog: pytest.LogCaptureFixture) -> None:
    mine, other = store.put_many([block(0), block(1)])
    whole = path_of(store, mine).read_bytes()
    path_of(store, mine).write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    assert "checksum" in lost(store, mine, caplog)
    shutil.copy(path_of(store, other), path_of(store, mine))
    assert "another block" in lost(store, mine, caplog)
    path_of(store, mine).unlink()
    path_of(store, mine).mkdir()
    assert "damaged blocks so far: 3" in lost(store, mine, caplog)
    assert store.counts == {"damaged": 3}
    with pytest.raises(StoreError, match="cannot write a block"):
        store.put(block(0))
    assert temporary_files(store) == []


def test_a_key_never_becomes_another_path(store: BlockStore) -> None:
    for key in ("../../etc/passwd", "", "A" * 64, "ab", "/" * 64, "ab" * 32 + "\n"):
        for call in (
            store.get,
            store.delete,
            store.contains,
            store.verify,
            store.size_of,
        ):
            with pytest.raises(ValueError, match="not the key"):
                call(key)


def test_reading_ahead_never_fails(store: BlockStore) -> None:
    key = store.put(block())
    store.read_ahead([key, "ab" * 32])
    path_of(store, key).unlink()
    path_of(store, key).mkdir()
    store.read_ahead([key])
    BlockStore(store.folder / "none").read_ahead([key])
    assert store.counts == {}


def test_what_killed_writers_left_is_swept_when_it_is_old(store: BlockStore) -> None:
    key = store.put(block())
    old, young = (path_of(store, key).with_name(f".{key[:16]}.{name}.tmp") for name in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"half a block")
    os.utime(old, (time.time() - 4000,) * 2)
    assert list(store.keys()) == [key]
    assert store.sweep_temporary() == 1
    assert temporary_files(store) == [young]
    assert store.sweep_temporary(older_than=0) == 1
    assert store.verify(key) is None
    assert BlockStore(store.folder / "none").sweep_temporary() == 0


def test_a_use_shows_in_the_time_of_the_file_once_a_minute(store: BlockStore) -> None:
    key = store.put(block())
    for seconds, touched in ((30, False), (90, True)):
        age(store, key, seconds)
        store.get(key)
        assert (time.time() - path_of(store, key).stat().st_mtime < seconds - 10) == touched


# The budget


def size_on_disk(tmp_path: Path) -> int:
    """Of one ``block()``; all are alike."""
    other = BlockStore(tmp_path / "other")
    return other.size_of(other.put(block()))


def test_a_put_evicts_until_all_fit_but_not_what_was_put(tmp_path: Path) -> None:
    one = size_on_disk(tmp_path)
    store = BlockStore(tmp_path / "blocks", max_bytes=3 * one)
    keys = [store.put(block(number)) for number in range(3)]
    assert store.counts["evicted"] == 0
    store.get(keys[0])
    keys.append(store.put(block(3)))
    assert sorted(store.keys()) == sorted([keys[0], keys[2], keys[3]])  # the least recently used went
    assert store.counts["evicted"] == 1
    batch = store.put_many([block(number) for number in range(10, 15)])  # more than fit
    assert sorted(store.keys()) == sorted(batch)
    last = store.put(block(20))
    assert last in list(store.keys())
    assert store.num_bytes == 3 * one
    tiny = BlockStore(tmp_path / "tiny", max_bytes=0)
    assert same(tiny.get(tiny.put(block())), block())


def test_what_costs_more_for_its_size_stays_longer(tmp_path: Path) -> None:
    one = size_on_disk(tmp_path)
    store = BlockStore(tmp_path / "blocks", max_bytes=2 * one)
    dear = store.put(block(0), cost=1000)
    for number in range(1, 6):
        store.put(block(number), cost=300)
    assert store.contains(dear)
    for number in range(6, 9):
        store.put(block(number), cost=300)
    assert not store.contains(dear)  # nobody asked for it for long
    tokens = BlockStore(tmp_path / "tokens", max_bytes=2 * one + 500)
    long = tokens.put(block(0, num_ids=60))  # by default the cost is the number of tokens
    for number in range(1, 4):
        tokens.put(block(number))
    assert tokens.contains(long)


def test_cost_and_last_use_outlive_the_process(tmp_path: Path) -> None:
    one = size_on_disk(tmp_path)
    before = BlockStore(tmp_path / "blocks")
    old, middle, young = (before.put(block(number), cost=10) for number in range(3))
    dear = before.put(block(3), cost=1000)
    for key, seconds in ((old, 3000), (middle, 2000), (young, 1000), (dear, 4000)):
        age(before, key, seconds)
    after = BlockStore(tmp_path / "blocks", max_bytes=4 * one)
    after.get(old)
    gone = []
    for number in range(10, 13):
        after.put(block(number), cost=10)
        gone += [key for key in (old, middle, young, dear) if not after.contains(key) and key not in gone]
    assert gone == [middle, young, old]
    assert same(after.get(dear), block(3))


def test_a_little_dearer_does_not_outlive_the_process_for_ever(tmp_path: Path) -> None:
    one = size_on_disk(tmp_path)
    before = BlockStore(tmp_path / "blocks")
    keys = [before.put(block(number), cost=10 if number else 10.5) for number in range(8)]
    for number, key in enumerate(keys):
        age(before, key, 8000 - 1000 * number)
    after = BlockStore(tmp_path / "blocks", max_bytes=8 * one)
    after.put(block(8))
    assert not after.contains(keys[0])  # what was used last so long before all others


def test_what_is_no_block_goes_first(tmp_path: Path) -> None:
    one = size_on_disk(tmp_path)
    store = BlockStore(tmp_path / "blocks")
    keys = store.put_many([block(0), block(1)])
    path_of(store, keys[0]).write_bytes(bytes(one))
    path_of(store, "ab" * 32).parent.mkdir(exist_ok=True)
    path_of(store, "ab" * 32).write_bytes(b"")
    bounded = BlockStore(tmp_path / "blocks", max_bytes=2 * one)
    bounded.put(block(2))
    assert not bounded.contains(keys[0])
    assert bounded.contains(keys[1])


def test_blocks_of_another_process_count_and_may_go(tmp_path: Path) -> None:
    one = size_on_disk(tmp_path)
    mine, theirs = (BlockStore(tmp_path / "blocks", max_bytes=20 * one) for _ in range(2))
    for number in range(40):
        mine.put(block(number))
        theirs.put(block(1000 + number))
    assert mine.num_bytes <= 23 * one  # each counts the other's again after a sixteenth of the budget
    assert mine.get(block(0).key) is None
    assert mine.counts["missing"] == 1
    assert mine.counts["damaged"] == 0


def test_a_deleted_block_no_longer_counts(tmp_path: Path) -> None:
    one = size_on_disk(tmp_path)
    store = BlockStore(tmp_path / "blocks", max_bytes=32 * one)
    keys = store.put_many([block(number) for number in range(32)])
    store.delete(keys[31])
    store.put(block(32))
    assert store.counts["evicted"] == 0
    store.put(block(33))
    assert store.counts["evicted"] == 1


def test_a_negative_budget_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="-1"):
        BlockStore(tmp_path, max_bytes=-1)


# Disks that refuse, and others who use the folder


def test_a_folder_that_cannot_be_is_one_line(store: BlockStore) -> None:
    store.folder.parent.mkdir()
    store.folder.write_text("a file where the folder should be")
    with pytest.raises(StoreError, match="cannot write a block") as caught:
        store.put(block())
    assert "\n" not in str(caught.value)
    assert list(store.keys()) == []
    assert store.sweep_temporary() == store.num_bytes == store.size_of("ab" * 32) == 0
    assert store.get("ab" * 32) is None


FILL = """
store = BlockStore(Path(sys.argv[1]))
kept = 0
try:
    for number in range(100):
        store.put(Block({"number": number}, (np.full(300_000 * (number + 1), number, np.uint8),)))
        kept += 1
except Exception as error:
    print(type(error).__name__, "|", error)
left = [path.name for path in Path(sys.argv[1]).rglob("*.tmp")]
whole = [store.get(key_of({"number": number})) is not None for number in range(kept + 1)]
print(kept, left, whole.count(True), len(list(store.keys())))
"""


def test_a_quota_is_one_line_and_leaves_nothing_half(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    error, counts = output(program(FILL, str(tmp_path)), preexec_fn=limit)
    assert error == f"StoreError | cannot write a block to {tmp_path}: File too large"
    assert counts == "3 [] 3 3"


def test_a_full_disk_is_one_line_and_leaves_nothing_half(tmp_path: Path) -> None:
    mount = ["unshare", "--mount", "--map-root-user", "sh", "-c", 'mount -t tmpfs -o size=2m full "$0" && exec "$@"']
    if not shutil.which("unshare") or subprocess.run([*mount, str(tmp_path), "true"], capture_output=True).returncode:
        pytest.skip("this user may not mount a small disk")
    error, counts = output([*mount, str(tmp_path), *program(FILL, str(tmp_path))])
    assert error == f"StoreError | cannot write a block to {tmp_path}: No space left on device"
    assert counts == "3 [] 3 3"


def test_one_block_that_is_refused_does_not_take_the_others_along(store: BlockStore) -> None:
    bad = block(5)
    path_of(store, bad.key).mkdir(parents=True)
    with pytest.raises(StoreError, match="cannot write a block"):
        store.put_many([block(0), bad, block(1)])
    assert same(store.get(block(0).key), block(0))
    assert same(store.get(block(1).key), block(1))
    assert temporary_files(store) == []


def test_two_processes_put_and_delete_the_same_keys_at_once(tmp_path: Path) -> None:
    work = """
store = BlockStore(Path(sys.argv[1]))
blocks = [Block({"number": n}, (np.full(200_000 + n, n, np.uint8),)) for n in range(8)]
for turn in range(12):
    store.put_many(blocks)
    for one, got in zip(blocks, store.get_many([one.key for one in blocks])):
        assert got is None or np.array_equal(got.arrays[0], one.arrays[0])
    store.delete(blocks[turn % 8].key)
store.put_many(blocks)
print(store.counts["damaged"])
"""
    running = [subprocess.Popen(program(work, str(tmp_path)), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60)[0].strip() for process in running] == ["0", "0"]
    store = BlockStore(tmp_path)
    assert temporary_files(store) == []
    assert all(store.verify(key) is None for key in store.keys())  # noqa: SIM118


def test_threads_share_a_bounded_store(tmp_path: Path) -> None:
    one = size_on_disk(tmp_path)
    store = BlockStore(tmp_path / "blocks", max_bytes=8 * one)
    wrong = []

    def work(seed: int) -> None:
        for number in range(25):
            put = block((seed * 5 + number) % 16)
            if (got := store.get(put.key)) is None:
                store.put(put)
            elif not same(got, put):
                wrong.append(put.key)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert store.counts["damaged"] == 0
    assert store.counts["hit"] + store.counts["missing"] == 100
    store.put(block(99))
    assert store.num_bytes <= 8 * one


def test_without_xxhash_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xxhash", None)
    with pytest.raises(MissingExtraError, match=r"gritkit\[rag\]"):
        BlockStore(tmp_path)


def test_more_files_than_may_be_open_at_once_are_read(store: BlockStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_OPEN_AT_ONCE", 3)
    put = [block(number, 100) for number in range(10)]
    assert all(map(same, store.get_many(store.put_many(put)), put))
