"""The knowledge bases of a folder, with a real engine: names, turns, ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lancedb")
pytest.importorskip("fastapi")

from gritkit.errors import InputError, StoreError
from gritkit.model import GritModel
from gritkit.rag import Rag
from gritkit.rag.manifest import FILE_NAME
from gritkit.rag.place import FolderPlace, place_of
from gritkit_serve import base_folders
from gritkit_serve import bases as module
from gritkit_serve.bases import INSTRUCTION_FILE, Bases
from gritkit_serve.engine import Engine, Overloaded
from gritkit_serve.errors import ConflictError, HttpError, NotFoundError
from gritkit_serve.settings import Settings
from tests.models import TEXTS, grit_model
from tests.serve.talking import until

PATIENCE_S = 60.0

HOSTILE = (
    "", ".", "..", "../a", "a/../b", "/etc", "a/b", "a\\b", "..\\a", "a\0", "a\n", "\na", "A", "ä", "a b", "-a", "_a",
    "a" * 64, "%2e%2e", "a.b", ".hidden", "~", "$HOME", "con:", "\ud800", "a\u200b", "\uff41",
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> GritModel:
    return grit_model("llama", prompt_format="grit")


@pytest.fixture(scope="module")
def engine(model: GritModel) -> Iterator[Engine]:
    running = Engine(model)
    running.start()
    yield running
    running.stop(drain_s=5.0)


Test = Callable[[Bases], Awaitable[Any]]


@pytest.fixture
def run(engine: Engine, tmp_path: Path) -> Callable[..., Any]:
    """``run(test)`` with the bases of a folder, in an event loop; ``settings`` are those of Settings."""

    def run(test: Test, folder: Path = tmp_path / "kbs", **settings: Any) -> Any:
        async def within() -> Any:
            bases = Bases(folder, engine, settings=Settings(**settings))
            try:
                return await test(bases)
            finally:
                bases.close()

        return asyncio.run(asyncio.wait_for(within(), PATIENCE_S))

    return run


async def fill(bases: Bases, name: str, texts: tuple[str, ...] = TEXTS) -> None:
    if name not in bases.names():
        await bases.create(name)
    with bases.writer(name) as writer:
        await writer.write(lambda rag: rag.add(list(texts)))


@contextlib.asynccontextmanager
async def occupied(bases: Bases, name: str) -> AsyncIterator[Callable[[], None]]:
    """A write that is at work for as long as the block takes, or until it is let go."""
    begun, ended = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def work(rag: Rag) -> int:
        loop.call_soon_threadsafe(begun.set)
        assert ended.wait(PATIENCE_S)
        return len(rag)

    with bases.writer(name) as writer:
        task = asyncio.ensure_future(writer.write(work))
        await begun.wait()
        try:
            yield ended.set
        finally:
            ended.set()
            await asyncio.gather(task, return_exceptions=True)


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_leads_anywhere_else(run: Callable[..., Any], tmp_path: Path, name: str) -> None:
    before = sorted(path for path in tmp_path.rglob("*"))

    async def test(bases: Bases) -> None:
        with pytest.raises(NotFoundError):
            bases.path(name)
        for attempt in (
            bases.create(name), bases.delete(name), bases.facts(name), bases.read(name, lambda rag: len(rag)),
        ):  # fmt: skip
            with pytest.raises(NotFoundError):
                await attempt
        with pytest.raises(NotFoundError):
            bases.writer(name)

    run(test)
    assert sorted(path for path in tmp_path.rglob("*")) == [*before, tmp_path / "kbs"]


@pytest.mark.parametrize("name", ["a", "0", "a-b_c", "a" * 63])
def test_plain_names_are_folders(run: Callable[..., Any], tmp_path: Path, name: str) -> None:
    async def test(bases: Bases) -> None:
        assert bases.path(name) == tmp_path / "kbs" / name
        await bases.create(name)
        assert bases.names() == [name]

    run(test)


def test_links_and_other_things_are_not_served(run: Callable[..., Any], tmp_path: Path, model: GritModel) -> None:
    outside = tmp_path / "outside"
    with Rag.open(outside, model) as rag:
        rag.add("a secret")
    folder = tmp_path / "kbs"
    folder.mkdir()
    os.symlink(outside, folder / "link")
    (folder / "half").mkdir()
    os.symlink(outside / "gritkit_kb.json", folder / "half" / "gritkit_kb.json")
    (folder / "empty").mkdir()
    (folder / "file").write_text("x")
    (folder / "full").mkdir()
    (folder / "full" / "notes.txt").write_text("mine")

    async def test(bases: Bases) -> None:
        assert bases.names() == []
        for name in ("link", "half", "empty", "file", "full"):
            with pytest.raises(NotFoundError):
                await bases.read(name, lambda rag: rag.search("secret"))
        for name in ("link", "half", "file", "full"):
            with pytest.raises(ConflictError, match="there already"):
                await bases.create(name)
            with pytest.raises(NotFoundError):
                await bases.delete(name)
        await bases.create("empty")
        assert bases.names() == ["empty"]

    run(test)
    with Rag.open(outside, model) as rag:
        assert len(rag) == 1
    assert (folder / "full" / "notes.txt").read_text() == "mine"


def test_a_folder_that_is_a_base_is_the_only_one(run: Callable[..., Any], tmp_path: Path, model: GritModel) -> None:
    folder = tmp_path / "My Notes (2024)"
    with Rag.open(folder, model) as rag:
        rag.add(list(TEXTS))

    async def test(bases: Bases) -> None:
        assert bases.names() == ["my-notes-2024"]
        assert await bases.read("my-notes-2024", lambda rag: len(rag)) == len(TEXTS)
        await fill(bases, "my-notes-2024", ("one more",))
        assert (await bases.facts("my-notes-2024")).stats.documents == len(TEXTS) + 1  # type: ignore[union-attr]
        for attempt in (bases.create("other"), bases.delete("my-notes-2024")):
            with pytest.raises(HttpError) as refused:
                await attempt
            assert refused.value.status == 403
        for name in ("other", "documents_0", "blocks", ".."):
            with pytest.raises(NotFoundError):
                await bases.read(name, lambda rag: len(rag))

    run(test, folder)
    assert folder.is_dir()


def test_a_folder_that_cannot_be_used_is_said(run: Callable[..., Any], tmp_path: Path, engine: Engine) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot use the folder"):
        Bases(tmp_path / "file", engine)
    with pytest.raises(InputError):
        Bases("", engine)


# -- making and deleting -----------------------------------------------------------------------------------------------


def test_what_was_made_is_there_after_a_restart(run: Callable[..., Any]) -> None:
    async def make(bases: Bases) -> None:
        await bases.create("a", codec="bf16", chunk_tokens=40, chunk_overlap=5, instruction="Find it")
        await bases.create("b")
        await fill(bases, "a")

    async def look(bases: Bases) -> None:
        a, b = await bases.all_facts()
        assert (a.name, a.instruction, a.problem, b.name, b.instruction) == ("a", "Find it", None, "b", None)
        assert a.stats is not None
        assert b.stats is not None
        assert (a.stats.codec, a.stats.chunk_tokens, a.stats.chunk_overlap) == ("bf16", 40, 5)
        assert (a.stats.documents, b.stats.documents, b.stats.codec) == (len(TEXTS), 0, "int8")
        assert await bases.read("a", lambda rag: rag._searcher._instruction) == "Find it"

    run(make)
    run(look)


def test_what_cannot_be_made_leaves_nothing(run: Callable[..., Any], tmp_path: Path) -> None:
    async def test(bases: Bases) -> None:
        for options in ({"codec": "zip"}, {"chunk_tokens": 1}, {"chunk_overlap": -1}, {"chunk_tokens": 10**9}):
            with pytest.raises(InputError):
                await bases.create("a", instruction="x", **options)
        assert not (tmp_path / "kbs" / "a").exists()
        await bases.create("a")
        with pytest.raises(ConflictError, match="there already"):
            await bases.create("a")
        await bases.create("b")
        with pytest.raises(ConflictError, match="2 knowledge bases"):
            await bases.create("c")

    run(test, max_bases=2)


def test_an_attempt_that_was_killed_is_no_base_and_is_in_nobodys_way(run: Callable[..., Any], tmp_path: Path) -> None:
    left = tmp_path / "kbs" / "a"
    left.mkdir(parents=True)
    (left / INSTRUCTION_FILE).write_text("of the killed one")

    async def test(bases: Bases) -> None:
        assert bases.names() == []
        await bases.create("a")
        assert (await bases.facts("a")).instruction is None

    run(test)


def test_deleted_is_gone_at_once_and_for_good(run: Callable[..., Any], tmp_path: Path) -> None:
    async def test(bases: Bases) -> None:
        await fill(bases, "a")
        await fill(bases, "b")
        await bases.delete("a")
        assert bases.names() == ["b"]
        with pytest.raises(NotFoundError):
            await bases.read("a", lambda rag: rag.search("fox"))
        with pytest.raises(NotFoundError):
            await bases.delete("a")
        await bases.create("a")  # the name is free
        assert await bases.read("a", lambda rag: len(rag)) == 0
        assert await bases.read("b", lambda rag: len(rag)) == len(TEXTS)

    run(test)
    assert sorted(entry.name for entry in (tmp_path / "kbs").iterdir()) == ["a", "b"]


def test_a_deletion_that_was_killed_is_finished_at_the_next_start(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def killed(bases: Bases) -> None:
        await fill(bases, "a")
        with pytest.raises(KeyboardInterrupt):
            await bases.delete("a")

    def kill(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module.shutil, "rmtree", kill)  # the process ends between the rename and the removal
        with contextlib.suppress(KeyboardInterrupt):
            run(killed)
    (left,) = (tmp_path / "kbs").iterdir()
    assert left.name.startswith(".deleted-a-")

    async def test(bases: Bases) -> None:
        assert bases.names() == []

    run(test)
    assert list((tmp_path / "kbs").iterdir()) == []


def test_who_reads_is_waited_for(run: Callable[..., Any]) -> None:
    async def test(bases: Bases) -> None:
        await fill(bases, "a")
        begun, go_on = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def slow(rag: Rag) -> int:
            loop.call_soon_threadsafe(begun.set)
            assert go_on.wait(PATIENCE_S)
            return len(rag.search("fox"))

        reading = asyncio.ensure_future(bases.read("a", slow))
        await begun.wait()
        deleting = asyncio.ensure_future(bases.delete("a"))
        while bases.names() and "a" not in bases._open._barred:
            await asyncio.sleep(0)
        with pytest.raises(NotFoundError):  # nobody new gets in
            await bases.read("a", lambda rag: len(rag))
        assert not deleting.done()
        go_on.set()
        assert await reading == 5
        await deleting

    run(test)


def test_one_that_is_in_use_for_too_long_stays(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE_S", 0.05)

    async def test(bases: Bases) -> None:
        await fill(bases, "a")
        begun, go_on = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def slow(rag: Rag) -> int:
            loop.call_soon_threadsafe(begun.set)
            assert go_on.wait(PATIENCE_S)
            return len(rag)

        reading = asyncio.ensure_future(bases.read("a", slow))
        await begun.wait()
        with pytest.raises(ConflictError, match="in use"):
            await bases.delete("a")
        go_on.set()
        assert await reading == len(TEXTS)
        other = place_of(bases.path("a")).writing(alone=False, wait_s=1.0)  # as another process does
        with other, pytest.raises(ConflictError, match="another process"):
            await bases.delete("a")
        assert await bases.read("a", lambda rag: len(rag.search("fox"))) == len(TEXTS)
        await bases.delete("a")

    run(test)


def test_bases_that_are_at_work_hold_up_nobody_who_needs_none(run: Callable[..., Any], engine: Engine) -> None:
    """Tokenising has threads of its own."""

    async def test(bases: Bases) -> None:
        await bases.create("a")
        go_on = threading.Event()
        held = [
            asyncio.ensure_future(bases.read("a", lambda rag: go_on.wait(PATIENCE_S)))
            for _ in range(engine.limits.base_workers + engine.limits.workers)
        ]
        await reached(lambda: engine.load().calls == len(held))
        assert await engine.call(lambda: 7) == 7
        go_on.set()
        assert await asyncio.gather(*held) == [True] * len(held)

    run(test)


# -- deleting beside others --------------------------------------------------------------------------------------------


class Watched:
    """A lock that says when somebody waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.waiting = threading.Event()

    def acquire(self, timeout: float = -1) -> bool:
        if self._lock.acquire(blocking=False):
            return True
        self.waiting.set()
        return self._lock.acquire(timeout=timeout)

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


@pytest.fixture
def held_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """(begun, go on): whoever opens or makes the base "slow" has its manifest, and waits before its tables."""
    begun, go_on = threading.Event(), threading.Event()
    store = FolderPlace.store

    def held(place: FolderPlace, manifest: Any) -> Any:
        if place.folder.name == "slow":
            begun.set()
            assert go_on.wait(PATIENCE_S)
        return store(place, manifest)

    monkeypatch.setattr(FolderPlace, "store", held)
    yield begun, go_on
    go_on.set()


def made_before(held_up: Any, folder: Path, model: GritModel, *names: str) -> None:
    """Bases that nobody holds up yet."""
    begun, go_on = held_up
    go_on.set()
    for name in names:
        Rag.open(folder / name, model).close()
    begun.clear()
    go_on.clear()


async def reached(condition: Callable[[], bool]) -> None:
    assert await asyncio.to_thread(until, condition, PATIENCE_S)


def test_one_that_is_deleted_while_it_is_made_leaves_its_name_free(run: Callable[..., Any], held_up: Any) -> None:
    begun, go_on = held_up

    async def test(bases: Bases) -> None:
        making = bases._making = Watched()  # type: ignore[assignment]
        creating = asyncio.ensure_future(bases.create("slow"))
        await reached(begun.is_set)
        deleting = asyncio.ensure_future(bases.delete("slow"))
        await reached(lambda: deleting.done() or making.waiting.is_set())
        go_on.set()
        await asyncio.gather(creating, deleting)
        assert os.listdir(bases.folder) == []
        await bases.create("slow")
        assert await bases.read("slow", lambda rag: len(rag)) == 0
        await bases.delete("slow")

    run(test)


def test_one_that_is_made_again_while_it_is_deleted_is_there(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is free from the rename on, and barred a moment longer."""

    async def test(bases: Bases) -> None:
        making = bases._making = Watched()  # type: ignore[assignment]
        await bases.create("a")
        sync, renamed = base_folders.sync_folder, threading.Event()
        release, barred = making.release, []

        def let_go() -> None:
            barred.append("a" in bases._open._barred)
            release()

        def wait(folder: Path) -> None:
            renamed.set()
            assert making.waiting.wait(PATIENCE_S)
            sync(folder)

        monkeypatch.setattr(base_folders, "sync_folder", wait)
        monkeypatch.setattr(making, "release", let_go)
        deleting = asyncio.ensure_future(bases.delete("a"))
        await reached(renamed.is_set)
        await bases.create("a")
        assert await bases.read("a", lambda rag: len(rag)) == 0
        await deleting
        assert list(bases._open._opened) == ["a"]
        assert barred == [False, False]  # neither by the deletion nor by what came after it

    run(test)


@pytest.mark.parametrize("of", ["this model", "another model"])
def test_one_that_is_deleted_while_it_is_opened_leaves_its_name_free(
    run: Callable[..., Any], tmp_path: Path, model: GritModel, held_up: Any, of: str
) -> None:
    begun, go_on = held_up
    go_on.set()
    with Rag.open(tmp_path / "kbs" / "slow", model if of == "this model" else grit_model("qwen3")) as rag:
        rag.add(list(TEXTS))
    begun.clear()
    go_on.clear()

    async def test(bases: Bases) -> None:
        looking = asyncio.ensure_future(bases.facts("slow"))
        await reached(begun.is_set)
        deleting = asyncio.ensure_future(bases.delete("slow"))
        await reached(lambda: deleting.done() or "slow" in bases._open._barred)
        go_on.set()
        await deleting
        await asyncio.gather(looking, return_exceptions=True)  # found or not, as it came
        assert os.listdir(bases.folder) == []
        await bases.create("slow")
        assert await bases.read("slow", lambda rag: len(rag)) == 0

    run(test)


def test_one_that_is_opened_for_too_long_stays(
    run: Callable[..., Any], tmp_path: Path, model: GritModel, held_up: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = held_up
    made_before(held_up, tmp_path / "kbs", model, "slow")
    monkeypatch.setattr(module, "_PATIENCE_S", 0.05)

    async def test(bases: Bases) -> None:
        reading = asyncio.ensure_future(bases.read("slow", lambda rag: len(rag)))
        await reached(begun.is_set)
        with pytest.raises(ConflictError, match="in use"):
            await bases.delete("slow")
        go_on.set()
        await asyncio.gather(reading, return_exceptions=True)
        assert await bases.read("slow", lambda rag: len(rag)) == 0
        await bases.delete("slow")

    run(test)


def test_one_that_takes_long_to_open_is_in_no_others_way(
    run: Callable[..., Any], tmp_path: Path, model: GritModel, held_up: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = held_up
    made_before(held_up, tmp_path / "kbs", model, "slow", "idle", "used")
    monkeypatch.setattr(module, "_PATIENCE_S", 0.05)

    async def test(bases: Bases) -> None:
        reading = asyncio.ensure_future(bases.read("slow", lambda rag: len(rag)))
        await reached(begun.is_set)
        await bases.delete("idle")
        assert await asyncio.wait_for(bases.read("used", lambda rag: len(rag)), PATIENCE_S) == 0
        await asyncio.wait_for(bases.create("new"), PATIENCE_S)
        assert not reading.done()
        go_on.set()
        assert await reading == 0
        assert bases.names() == ["new", "slow", "used"]

    run(test)


def test_one_that_is_read_while_it_is_made_is_open_once(run: Callable[..., Any], held_up: Any) -> None:
    """Whoever reads it as soon as its manifest is there opens it beside its maker."""
    _, go_on = held_up
    go_on.set()
    closed: list[Rag] = []

    async def test(bases: Bases) -> None:
        add, close = bases._open.add, Rag.close

        def read_first(name: str, folder: Any, rag: Rag) -> None:
            with bases._open.using(name, folder) as (other, _):
                assert other is not rag
                add(name, folder, rag)
                assert closed == []
            assert closed == [other]

        def noted(rag: Rag) -> None:
            closed.append(rag)
            close(rag)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bases._open, "add", read_first)
            patch.setattr(Rag, "close", noted)
            await bases.create("new")
        assert await bases.read("new", lambda rag: len(rag)) == 0
        assert list(bases._open._opened) == ["new"]

    run(test)


def test_one_that_is_closed_while_its_deletion_waits_counts_once(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rag, "counts", Counter(memory=3))

    async def test(bases: Bases) -> None:
        await bases.create("a")
        with bases._open.opening("a"):  # as if another process had just made it anew
            deleting = asyncio.ensure_future(bases.delete("a"))
            await reached(lambda: "a" in bases._open._barred)
            bases._open.close()
        await deleting
        assert bases.counts() == Counter(memory=3)

    run(test)


def test_what_is_left_of_a_deleted_one_is_in_nobodys_way(
    run: Callable[..., Any], tmp_path: Path, model: GritModel
) -> None:
    left = tmp_path / "kbs" / "a"

    def leave(rows: bool = False) -> None:
        with Rag.open(left, model) as rag:
            rag.add(["a text"] if rows else [])
        (left / FILE_NAME).unlink()

    async def make(bases: Bases) -> None:
        leave()
        (left / "blocks" / "00").mkdir(parents=True)
        await bases.create("a")
        assert await bases.read("a", lambda rag: len(rag)) == 0
        assert not (left / "blocks" / "00").exists()
        await bases.delete("a")

    async def start(bases: Bases) -> None:
        assert os.listdir(bases.folder) == []

    async def keep(bases: Bases) -> None:
        with pytest.raises(ConflictError, match="there already"):
            await bases.create("a")

    run(make)
    leave()
    run(start)
    leave(rows=True)  # somebody may put the manifest back
    run(keep)
    (left / FILE_NAME).write_text("{")
    run(keep)
    assert (left / "documents_0.lance" / "data").is_dir()


@pytest.mark.parametrize("more", [f"blocks/00/{'0' * 64}.kv", "blocks/.notes", ".git/HEAD", ".env", "mine.txt"])
def test_what_is_of_others_or_is_being_copied_there_is_nothing_left(
    run: Callable[..., Any], tmp_path: Path, model: GritModel, more: str
) -> None:
    """A backup comes back in the order of its names: key-values, rows, and the manifest last."""
    restored = tmp_path / "kbs" / "a"
    with Rag.open(restored, model) as rag:
        rag.add([])
    (restored / FILE_NAME).unlink()
    (restored / more).parent.mkdir(parents=True, exist_ok=True)
    (restored / more).write_text("mine")

    async def test(bases: Bases) -> None:
        with pytest.raises(ConflictError, match="there already"):
            await bases.create("a")

    run(test)
    assert (restored / more).read_text() == "mine"


@pytest.mark.parametrize("name", ["blocks", "documents_0.lance"])
def test_what_is_called_like_a_part_of_a_base_is_not_taken_for_one(
    run: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    mine = tmp_path / "kbs" / "a" / name / "data"
    mine.mkdir(parents=True)
    (mine / "mine.txt").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "kbs" / "b").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "kbs" / "b" / name)

    async def test(bases: Bases) -> None:
        for base in "ab":
            with pytest.raises(ConflictError, match="there already"):
                await bases.create(base)

    run(test)
    assert (mine / "mine.txt").read_text() == "mine"
    assert (tmp_path / "kbs" / "b" / name).is_symlink()


# -- turns -------------------------------------------------------------------------------------------------------------


def test_writers_take_turns_and_readers_go_on(run: Callable[..., Any]) -> None:
    async def test(bases: Bases) -> None:
        await fill(bases, "a")
        async with occupied(bases, "a"):
            with bases.writer("a") as other:
                waiting = asyncio.ensure_future(other.write(lambda rag: rag.add("another")))
                assert len(await bases.read("a", lambda rag: rag.search("fox"))) == 5
                await fill(bases, "b")  # another base is free
                assert not waiting.done()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        assert await bases.read("a", lambda rag: len(rag)) == len(TEXTS)  # what had not begun did not happen

    run(test)


def test_so_many_and_no_more_wait(run: Callable[..., Any]) -> None:
    async def test(bases: Bases) -> None:
        await bases.create("a")
        with bases.writer("a") as one, bases.writer("a"):
            with pytest.raises(Overloaded):
                bases.writer("a")
            with pytest.raises(Overloaded):
                await bases.delete("a")
            one.close()
            one.close()
            bases.writer("a").close()
        assert bases._turns == {}

    run(test, max_waiting_writes=2)


def test_a_write_whose_caller_is_gone_goes_on_alone(run: Callable[..., Any]) -> None:
    async def test(bases: Bases) -> None:
        await bases.create("a")
        begun, go_on = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()
        order: list[str] = []

        def slow(rag: Rag) -> None:
            loop.call_soon_threadsafe(begun.set)
            assert go_on.wait(PATIENCE_S)
            rag.add("of the one who left")
            order.append("first")

        with bases.writer("a") as writer:
            task = asyncio.ensure_future(writer.write(slow))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        with bases.writer("a") as writer:
            second = asyncio.ensure_future(writer.write(lambda rag: order.append("second")))
            go_on.set()
            await second
        assert order == ["first", "second"]  # not beside each other
        assert await bases.read("a", lambda rag: len(rag)) == 1
        assert bases._turns == {}
        assert bases._unfinished == set()

    run(test)


def test_an_abandoned_write_that_fails_is_logged(run: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    async def test(bases: Bases) -> None:
        await bases.create("a")
        begun, go_on = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def fail(rag: Rag) -> None:
            loop.call_soon_threadsafe(begun.set)
            assert go_on.wait(PATIENCE_S)
            raise RuntimeError("a secret of the client")

        with bases.writer("a") as writer:
            task = asyncio.ensure_future(writer.write(fail))
            await begun.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        go_on.set()
        with bases.writer("a") as writer:
            await writer.write(lambda rag: len(rag))

    run(test)
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text


# -- several at once ---------------------------------------------------------------------------------------------------


def test_only_so_many_stay_open_and_share_the_memory(run: Callable[..., Any]) -> None:
    budget = 1 << 20

    async def test(bases: Bases) -> None:
        for name in "abcd":
            await fill(bases, name)
        for name in "abcdabcd":
            assert await bases.read(name, lambda rag: len(rag.ask("fox?", max_new_tokens=1).sources)) == 3
        opened = bases._open._opened
        assert sorted(opened) == ["c", "d"]
        budgets = [one.rag._cache._memory.max_bytes for one in opened.values()]  # type: ignore[union-attr]
        assert budgets == [budget // 2, budget // 2]
        async with occupied(bases, "a"), occupied(bases, "b"):  # those in use are never closed
            assert await bases.read("c", lambda rag: len(rag)) == len(TEXTS)
            assert {"a", "b"} <= set(opened)
        await bases.read("d", lambda rag: len(rag))
        assert len(opened) == 2

    run(test, max_open_bases=2, base_memory_bytes=budget)


def test_who_looks_closes_none_and_is_none_who_asked(run: Callable[..., Any], tmp_path: Path) -> None:
    """A page lists all of them after each change."""
    budget = 1 << 20

    async def test(bases: Bases) -> None:
        for name in "abcd":
            await fill(bases, name)
        opened = bases._open._opened
        await bases.read("a", lambda rag: rag.ask("fox?", max_new_tokens=1))
        before = {name: await bases.read(name, id) for name in "ba"}
        kept = opened["a"].rag._cache._memory.num_bytes  # type: ignore[union-attr]
        assert kept > 0
        for name in "bbccdd":
            assert (await bases.facts(name)).stats.documents == len(TEXTS)  # type: ignore[union-attr]
        assert [(facts.name, facts.problem) for facts in await bases.all_facts()] == [(name, None) for name in "abcd"]
        assert {name: id(one.rag) for name, one in opened.items()} == before
        memory = opened["a"].rag._cache._memory  # type: ignore[union-attr]
        assert (memory.num_bytes, memory.max_bytes) == (kept, budget // 2)
        await bases.read("c", lambda rag: len(rag))
        assert sorted(opened) == ["a", "c"]  # "b" was looked at last, and asked for first

    run(test, max_open_bases=2, base_memory_bytes=budget)


def test_what_was_read_is_still_counted_when_its_base_is_closed_or_deleted(run: Callable[..., Any]) -> None:
    async def test(bases: Bases) -> None:
        await fill(bases, "a")
        await bases.read("a", lambda rag: rag.ask("fox?", reuse="cached", max_new_tokens=1))
        before = bases.counts()
        assert before["disk"] + before["memory"] == 3
        async with occupied(bases, "a") as let_go:
            for name in "bc":
                await fill(bases, name)
            bases._open.close()  # "a" is not wanted any more, and in use
            assert bases.counts() == before
            let_go()
        assert bases.counts() == before
        await bases.read("a", lambda rag: rag.ask("fox?", reuse="cached", max_new_tokens=1))
        for name in "bc":
            await bases.read(name, lambda rag: len(rag))
        assert "a" not in bases._open._opened
        assert sum(bases.counts().values()) == 6
        await bases.read("a", lambda rag: len(rag))
        await bases.delete("a")
        assert sum(bases.counts().values()) == 6

    run(test, max_open_bases=1)


def test_many_ask_for_one_that_is_closed_and_it_is_opened_once(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def make(bases: Bases) -> None:
        await fill(bases, "a")

    async def test(bases: Bases) -> None:
        found = await asyncio.gather(*(bases.read("a", lambda rag: (id(rag), len(rag))) for _ in range(20)))
        assert len({opened for opened, _ in found}) == 1
        assert {count for _, count in found} == {len(TEXTS)}

    run(make)
    run(test)


def test_what_another_process_put_in_its_place_is_what_is_read(
    run: Callable[..., Any], tmp_path: Path, model: GritModel
) -> None:
    async def test(bases: Bases) -> None:
        await fill(bases, "a")
        path = bases.path("a")
        os.rename(path, tmp_path / "old")  # another server deletes it ...
        with pytest.raises(NotFoundError):
            await bases.read("a", lambda rag: len(rag))
        assert bases.names() == []
        with Rag.open(path, model) as rag:  # ... and makes it anew
            rag.add("made anew")
        hits = await bases.read("a", lambda rag: rag.search("fox"))
        assert [hit.text for hit in hits] == ["made anew"]
        with Rag.open(path, model) as rag:
            rag.add("from outside")
        assert len(await bases.read("a", lambda rag: rag.search("fox"))) == 2

    run(test)


def test_one_of_another_model_is_listed_and_refused(run: Callable[..., Any], tmp_path: Path) -> None:
    with Rag.open(tmp_path / "kbs" / "other", grit_model("qwen3")) as rag:
        rag.add(list(TEXTS))
    (tmp_path / "kbs" / "broken").mkdir()
    (tmp_path / "kbs" / "broken" / "gritkit_kb.json").write_text("{")

    async def test(bases: Bases) -> None:
        broken, other = await bases.all_facts()
        assert broken.stats is None
        assert "damaged" in str(broken.problem)
        assert other.stats is not None
        assert other.stats.documents == len(TEXTS)
        assert "another model" in str(other.problem)
        for facts in (broken, other):
            assert str(tmp_path) not in str(facts.problem)
            with pytest.raises(ConflictError, match=f"'{facts.name}' cannot be used") as refused:
                await bases.read(facts.name, lambda rag: rag.search("fox"))
            assert str(tmp_path) not in str(refused.value)
        await bases.delete("other")
        await bases.delete("broken")
        assert bases.names() == []

    run(test)


def test_a_disk_that_refuses_is_said_without_its_path(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(bases: Bases) -> None:
        await fill(bases, "a")

        def refuse(rag: Rag) -> None:
            raise StoreError(f"cannot write to {bases.path('a')}: No space left on device")

        with bases.writer("a") as writer, pytest.raises(HttpError, match="No space left") as refused:
            await writer.write(refuse)
        assert (refused.value.status, refused.value.code) == (507, "storage_error")
        assert str(tmp_path) not in str(refused.value)
        with pytest.raises(HttpError) as failed:
            await bases.read("a", refuse)
        assert failed.value.status == 500
        assert await bases.read("a", lambda rag: len(rag)) == len(TEXTS)

    run(test)
    assert "No space left" in caplog.text
