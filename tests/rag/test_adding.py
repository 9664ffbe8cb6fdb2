from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gritkit.errors import InputError, StoreError
from gritkit.model import GritModel
from gritkit.rag import AddReport, AddStopped, Document, Rag, reindex
from gritkit.rag.adding import batches
from gritkit.rag.base import KnowledgeBase
from tests.models import TEXTS, grit_model, shared_model

LONG = " ".join(f"word{i}" for i in range(300))


@pytest.fixture(scope="module")
def model() -> GritModel:
    return shared_model("llama")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kb"


@pytest.fixture
def rag(folder: Path, model: GritModel) -> Iterator[Rag]:
    with Rag.open(folder, model, chunk_tokens=80) as opened:
        yield opened


def texts(rag: Rag) -> dict[str, list[str]]:
    """Everything that is stored: the chunks of every document, in order."""
    found: dict[str, list[str]] = {}
    for rows in rag.base.store.scan():
        for row in rows:
            found.setdefault(row.document, []).append(row.text)
            assert row.number == len(found[row.document]) - 1
            assert rag.base.blocks.contains(row.block_key)
    return found


def num_blocks(rag: Rag) -> int:
    return len(list(rag.base.blocks.keys()))


# -- stopping --------------------------------------------------------------------------------------------------------


@pytest.fixture
def passes(rag: Rag, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each pass that documents are read in; a pass takes two chunks."""
    read, seen = GritModel.read_tokens, []

    def counted(model: GritModel, sequences: Any, **options: Any) -> Any:
        seen.append(sum(map(len, sequences)))
        return read(model, sequences, **options)

    monkeypatch.setattr("gritkit.rag.reader._READ_TOKENS", 160)
    monkeypatch.setattr("gritkit.rag.reader.token_budget", lambda device: 160)
    monkeypatch.setattr(GritModel, "read_tokens", counted)
    return seen


def test_stopped_at_any_moment_it_is_as_it_was(rag: Rag, passes: list[int]) -> None:
    text = LONG[:400]
    rag.add([Document(LONG[:200], id="a"), Document(text, id="same chunks")])
    kept, blocks = texts(rag), set(rag.base.blocks.keys())
    passes.clear()
    after = [Document(f"{text} new {text}", id="a"), Document(f"{text} newer", id="b", kind="markdown")]
    for last in range(1000):
        asked = 0

        def cancelled(last: int = last) -> bool:
            nonlocal asked
            asked += 1
            return asked > last

        try:
            report = rag.add(after, cancelled=cancelled)
            break
        except AddStopped:
            assert asked == last + 1
            assert texts(rag) == kept
            assert set(rag.base.blocks.keys()) == blocks
            assert not list(rag.base.blocks.folder.rglob("*.tmp"))
    assert len(passes) > last > 20
    assert (report.added, report.updated) == (1, 1)
    assert sorted(texts(rag)) == ["a", "b", "same chunks"]
    assert num_blocks(rag) == len({row.block_key for rows in rag.base.store.scan() for row in rows})


def test_stopped_it_leaves_blocks_that_another_writer_is_about_to_name(
    rag: Rag, folder: Path, model: GritModel, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two servers of one folder, and a client who sends to the one what he sends to the other."""
    documents = [Document(LONG, id="a")]
    with Rag.open(folder, model) as other:
        commit = other.base.replace

        def commit_after_another_was_stopped(*rows: Any) -> None:
            passes.clear()
            with pytest.raises(AddStopped):
                rag.add(documents, cancelled=lambda: len(passes) == 5)
            commit(*rows)

        monkeypatch.setattr(other.base, "replace", commit_after_another_was_stopped)
        other.add(documents)
        assert list(texts(other)) == ["a"]  # with all of its blocks


def test_blocks_that_another_writer_has_put_again_are_not_taken_back(rag: Rag, folder: Path, model: GritModel) -> None:
    rag.add(LONG)
    (rows,) = rag.base.store.scan()
    keys = {row.block_key for row in rows}
    blocks = [block for block in rag.base.blocks.get_many(sorted(keys)) if block is not None]
    rag.base.delete([rows[0].document])
    assert rag.base.put_blocks(blocks, keys).keys() == keys
    for file in rag.base.blocks.folder.rglob("*.kv"):
        os.utime(file, ns=(0, 0))  # its clock may stand still for some milliseconds
    with Rag.open(folder, model) as other:
        assert other.base.put_blocks(blocks, keys) == {}
    rag.base.take_back(dict.fromkeys(keys, 0))
    assert set(rag.base.blocks.keys()) == keys
    rag.base.take_back({key: rag.base.blocks.time_of(key) for key in keys})
    assert num_blocks(rag) == 0


def test_it_stops_before_the_next_pass(rag: Rag, passes: list[int]) -> None:
    with pytest.raises(AddStopped, match="what was committed before stays"):
        rag.add(LONG, cancelled=lambda: len(passes) == 2)
    assert len(passes) == 2
    assert len(rag) == 0
    rag.add(LONG)
    assert len(passes) > 5


def test_it_stops_between_commits_with_what_was_committed(rag: Rag, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gritkit.rag.adding._DOCUMENTS_AT_ONCE", 1)
    with pytest.raises(AddStopped):
        rag.add(TEXTS, cancelled=lambda: len(rag) == 2)
    assert len(rag) == 2
    assert rag.add(TEXTS) == AddReport(added=len(TEXTS) - 2, skipped=2, chunks=len(TEXTS) - 2)


# -- commits -------------------------------------------------------------------------------------------------------


def test_batches_are_bounded_and_have_an_id_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gritkit.rag.adding._DOCUMENTS_AT_ONCE", 3)
    monkeypatch.setattr("gritkit.rag.adding._CHARACTERS_AT_ONCE", 10)

    def ids(*documents: Any) -> list[list[str]]:
        return [list(batch) for batch in batches(documents)]

    one = [Document("x", id=str(i)) for i in range(7)]
    assert ids(*one) == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
    assert ids(Document("12345", id="a"), Document("12345", id="b"), Document("1", id="c")) == [["a", "b"], ["c"]]
    assert ids(Document("1" * 99, id="a"), Document("1", id="b")) == [["a"], ["b"]]
    assert ids(one[0], one[1], one[0]) == [["0", "1"], ["0"]]
    assert ids() == []
    assert ids("text", Document("text")) == [[Document("text").id]] * 2
    for bad in (5, b"text", {"a": 1}, None):
        with pytest.raises(InputError, match=f"iterable of Document or str, not {type(bad).__name__}"):
            list(batches(bad))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="document 1 is int"):
        list(batches(["a", 5]))  # type: ignore[list-item]


def test_documents_come_as_they_are_read(rag: Rag, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator is not held in memory: the first commits are there before its end is asked for."""
    monkeypatch.setattr("gritkit.rag.adding._DOCUMENTS_AT_ONCE", 2)
    seen = []

    def stream() -> Iterator[Document]:
        for i in range(6):
            seen.append(len(rag))
            yield Document(f"text {i}", id=str(i))

    assert rag.add(stream()).added == 6
    assert seen == [0, 0, 0, 2, 2, 4]


def test_a_changed_document_has_exactly_its_new_chunks(rag: Rag) -> None:
    first = rag.add([Document(LONG, id="a"), Document("other", id="b")])
    assert first.chunks == sum(map(len, texts(rag).values())) == num_blocks(rag) > 5
    assert rag.add(Document(LONG[:700], id="a")).updated == 1
    shorter = texts(rag)
    assert 1 < len(shorter["a"]) < first.chunks - 1
    assert shorter["b"] == ["other"]
    assert num_blocks(rag) == sum(map(len, shorter.values()))
    assert rag.add(Document(LONG, id="a")).updated == 1
    assert sum(map(len, texts(rag).values())) == first.chunks


def test_only_what_changed_is_read(rag: Rag, model: GritModel, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [Document(f"text number {i}", id=str(i), metadata={"v": 1}) for i in range(4)]
    rag.add(documents)
    monkeypatch.setattr(model, "read_tokens", lambda *_, **__: pytest.fail("read again"))
    assert rag.add(documents) == AddReport(skipped=4)
    changed = [Document(f"text number {i}", id=str(i), metadata={"v": 2}) for i in range(4)]
    assert rag.add(changed[:2]) == AddReport(updated=2)
    assert rag.add(changed) == AddReport(skipped=2, updated=2)
    assert {hit.metadata["v"] for hit in rag.search("text")} == {2}
    assert num_blocks(rag) == 4


def test_the_last_of_an_id_stays(rag: Rag) -> None:
    documents = [Document(text, id="a") for text in ("one", "two", LONG, "three")]
    assert rag.add(documents) == AddReport(added=1, updated=3, chunks=3 + len(rag.reader.cut(documents[2])))
    assert texts(rag) == {"a": ["three"]}
    assert num_blocks(rag) == 1


# -- errors --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_taken_is_handed_over_and_the_rest_goes_on(rag: Rag) -> None:
    failed: list[tuple[str, str]] = []
    documents = [Document("one", id="a"), Document(" ", id="b"), Document("", id="c"), Document("two", id="d")]
    report = rag.add(documents, on_error=lambda id, reason: failed.append((id, reason)))
    assert report == AddReport(added=2, failed=2, chunks=2)
    assert [id for id, _ in failed] == ["b", "c"]
    assert all("empty" in reason and "\n" not in reason for _, reason in failed)
    assert set(texts(rag)) == {"a", "d"}
    assert rag.add(Document(" ", id="a"), on_error=lambda *_: None) == AddReport(failed=1)
    assert texts(rag)["a"] == ["one"]  # what was there stays


def test_what_was_committed_before_an_error_stays(rag: Rag, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gritkit.rag.adding._DOCUMENTS_AT_ONCE", 2)
    rag.add(Document("old", id="0"))
    key = rag.base.store.heads(["0"])["0"].block_keys[0]
    documents = [Document(f"text {i}", id=str(i)) for i in range(3)] + [Document("", id="bad")]
    with pytest.raises(InputError, match="document 'bad'"):
        rag.add(documents)
    assert set(texts(rag)) == {"0", "1"}
    assert rag._cache is not None
    assert rag._cache.get_many([key]) == [None]  # its memory was cleared all the same
    assert rag.add(documents[:3]) == AddReport(added=1, skipped=2, chunks=1)


@pytest.mark.parametrize("at", ["before", "after"])
def test_a_kill_between_blocks_and_rows_loses_nothing(
    rag: Rag, folder: Path, model: GritModel, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks are there, rows are not (or both are): the next run goes on from there."""
    monkeypatch.setattr("gritkit.rag.adding._DOCUMENTS_AT_ONCE", 2)
    replace = KnowledgeBase.replace
    documents = [Document(f"text {i}", id=str(i)) for i in range(5)]

    def killed(self: KnowledgeBase, rows: Any, blocks: Any = ()) -> None:
        assert all(self.blocks.contains(row.block_key) for row in rows)  # never a row before its block
        if any(row.document == "3" for row in rows) and at == "before":
            raise KeyboardInterrupt
        replace(self, rows, blocks)
        if any(row.document == "3" for row in rows):
            raise KeyboardInterrupt

    monkeypatch.setattr(KnowledgeBase, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        rag.add(documents)
    monkeypatch.undo()
    rag.close()
    with Rag.open(folder, model) as again:
        there = 2 if at == "before" else 4
        assert len(texts(again)) == there
        assert again.verify().damaged == []
        assert again.add(documents) == AddReport(added=5 - there, skipped=there, chunks=5 - there)
        assert texts(again) == {str(i): [f"text {i}"] for i in range(5)}
        assert again.ask("text?", max_new_tokens=1).recomputed == 0


def test_a_disk_that_refuses_blocks_leaves_no_row(rag: Rag, monkeypatch: pytest.MonkeyPatch) -> None:
    rag.add(Document("old", id="a"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gritkit.kv.blocks._create", full)
    with pytest.raises(StoreError, match="No space left on device") as error:
        rag.add([Document("new", id="a"), Document(LONG, id="b")])
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    assert texts(rag) == {"a": ["old"]}
    assert rag.add([Document("new", id="a"), Document(LONG, id="b")]).added == 1


# -- another model -------------------------------------------------------------------------------------------------


@pytest.fixture
def other() -> GritModel:
    return grit_model("qwen3")


def test_another_model_reads_everything_again(rag: Rag, folder: Path, model: GritModel, other: GritModel) -> None:
    documents = [Document(LONG, id="long", metadata={"a": 1}), *(Document(text, id=text) for text in TEXTS)]
    report = rag.add(documents)
    before = texts(rag)
    rag.close()
    with pytest.raises(StoreError, match="gritkit kb reindex"):
        Rag.open(folder, other)
    assert reindex(folder, other) == AddReport(updated=len(documents), chunks=report.chunks)
    with pytest.raises(StoreError, match="another model"):
        Rag.open(folder, model)
    with Rag.open(folder, other) as again:
        assert texts(again) == before
        assert num_blocks(again) == report.chunks
        rows = [row for some in again.base.store.scan() for row in some]
        assert {row.fingerprint for row in rows} == {other.fingerprint}
        np.testing.assert_allclose(
            np.stack([row.vector for row in rows if row.vector is not None]),
            other.embed([row.text for row in rows]),
            atol=1e-5,
        )
        assert again.ask("fox?", max_new_tokens=1).recomputed == 0
        assert again.add(documents) == AddReport(skipped=len(documents))  # cut as before
        assert again.verify().repaired == []
        assert again.search("word", top_k=1, where={"a": 1})[0].id == "long"


def test_an_exception_half_way_leaves_the_old(
    rag: Rag, folder: Path, model: GritModel, other: GritModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rag.add([Document(f"text {i}", id=str(i)) for i in range(5)])
    before, answer = texts(rag), rag.ask("text?", max_new_tokens=6)
    monkeypatch.setattr("gritkit.rag.adding._DOCUMENTS_AT_ONCE", 2)
    read, calls = other.read_tokens, []

    def killed(sequences: Any, **options: Any) -> Any:
        calls.append(len(sequences))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return read(sequences, **options)

    monkeypatch.setattr(other, "read_tokens", killed)
    with pytest.raises(KeyboardInterrupt):
        reindex(folder, other)
    monkeypatch.undo()
    assert texts(rag) == before  # who had it open goes on
    with Rag.open(folder, model) as again:
        assert texts(again) == before
        assert again.ask("text?", max_new_tokens=6).text == answer.text
        assert again.add(Document("text 9", id="9")).added == 1
    assert reindex(folder, other).updated == 6
    with Rag.open(folder, other) as again:
        assert len(texts(again)) == 6
        assert num_blocks(again) == 6


def test_chunks_that_do_not_fit_the_new_model_are_named_and_nothing_changes(
    rag: Rag, folder: Path, model: GritModel
) -> None:
    rag.add([Document(LONG, id="long")])
    before = texts(rag)
    with pytest.raises(InputError, match=r"chunk 'long#0' cannot be read by this model: .* max_length is 40"):
        reindex(folder, grit_model("qwen3", max_length=40))
    with Rag.open(folder, model) as again:
        assert texts(again) == before


def test_who_had_it_open_is_told_to_open_it_again(rag: Rag, folder: Path, other: GritModel) -> None:
    rag.add(Document("text", id="a"))
    reindex(folder, other)
    with pytest.raises(StoreError, match="indexed again since it was opened: open it again"):
        rag.add(Document("more", id="b"))
    with pytest.raises(StoreError, match="indexed again since it was opened: open it again"):
        rag.search("text")


def test_no_knowledge_base_is_made_by_converting_it(folder: Path, model: GritModel) -> None:
    with pytest.raises(StoreError, match="there is no knowledge base at"):
        reindex(folder, model)
    assert not folder.exists()
