from __future__ import annotations

import functools
import pickle
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from gritkit.errors import InputError
from gritkit.model import GritModel
from gritkit.rag import AddReport, Document, Rag, parcels
from gritkit.rag.base import KnowledgeBase
from gritkit.rag.coding import BlockCoder
from gritkit.rag.parcels import Batch, Intake, Parcel, Share, Worker, feed
from gritkit.rag.reader import Piece, Reader, manifest_of
from gritkit.rag.sources import Failure
from gritkit.rag.store import Row
from tests.models import TEXTS, shared_model

LONG = "\n\n".join(f"{TEXTS[0]} and {TEXTS[1]}, part {number}" for number in range(12))
CHUNK_TOKENS = 64


@pytest.fixture(scope="module")
def model() -> GritModel:
    return shared_model("llama")


@pytest.fixture
def base(tmp_path: Path, model: GritModel) -> Iterator[KnowledgeBase]:
    manifest = manifest_of(model, codec="int8", chunk_tokens=CHUNK_TOKENS)
    with KnowledgeBase.open(tmp_path / "kb", manifest=manifest) as opened:
        yield opened


def corpus(count: int = 12) -> list[Document]:
    """Short ones, and every fourth of several chunks."""
    texts = [LONG if number % 4 == 3 else TEXTS[number % 3] for number in range(count)]
    return [
        Document(f"{text} {number}", id=f"doc {number}", metadata={"n": number}) for number, text in enumerate(texts)
    ]


def share_of(*given: Document | Failure) -> Share:
    return functools.partial(list, given)


def reader_of(model: GritModel, base: KnowledgeBase) -> Reader:
    return Reader(model, base.manifest, BlockCoder(model, "int8"))


def read_all(worker: Worker, batches: Sequence[Batch]) -> list[Parcel]:
    """As they arrive elsewhere."""
    read = [parcel for batch in batches for parcel in worker.read(pickle.loads(pickle.dumps(batch)))]
    return [pickle.loads(pickle.dumps(parcel)) for parcel in read]


def fed(base: KnowledgeBase, *given: Document | Failure, batch_size: int = 4) -> list[Batch]:
    return list(feed(share_of(*given), 0, base, batch_size=batch_size))


def rows_of(base: KnowledgeBase) -> dict[str, Row]:
    return {row.id: row for rows in base.store.scan() for row in rows}


def assert_same(base: KnowledgeBase, other: KnowledgeBase) -> None:
    """Rows to the last field, vectors to 1e-5, blocks to one step of their codes."""
    mine, theirs = rows_of(base), rows_of(other)
    assert mine.keys() == theirs.keys()
    for id, row in mine.items():
        twin = theirs[id]
        for name in ("text", "count", "metadata", "tags", "digest", "token_ids", "block_key", "fingerprint"):
            assert getattr(row, name) == getattr(twin, name), (id, name)
        assert row.vector is not None
        assert twin.vector is not None
        np.testing.assert_allclose(row.vector, twin.vector, atol=1e-5)
        block, reference = base.blocks.get(row.block_key), other.blocks.get(row.block_key)
        assert block is not None
        assert reference is not None
        for array, expected in zip(block.arrays, reference.arrays, strict=True):
            assert array.dtype == expected.dtype
            np.testing.assert_allclose(array.astype(np.float64), expected.astype(np.float64), rtol=1e-3, atol=1)


def local(folder: Path, model: GritModel, documents: Sequence[Document]) -> KnowledgeBase:
    """What the local engine makes of them."""
    with Rag.open(folder, model, chunk_tokens=CHUNK_TOKENS) as rag:
        rag.add(documents)
    return KnowledgeBase.open(folder)


# -- all of it ---------------------------------------------------------------------------------------------------


def test_parcels_in_any_order_and_twice_make_what_the_local_engine_makes(
    base: KnowledgeBase, model: GritModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parcels, "PARCEL_BYTES", 1)  # a chunk a parcel
    came = read_all(Worker(reader_of(model, base)), fed(base, *corpus()))
    assert len(came) > 30
    came += came[::3]
    random.Random(7).shuffle(came)
    intake = Intake(base, 1)
    intake.begin()
    for parcel in came:
        intake.take(parcel)
    intake.commit()
    assert intake.whole
    rows = rows_of(base)
    assert intake.report == AddReport(added=12, chunks=len(rows))
    with local(tmp_path / "local", model, corpus()) as twin:
        assert_same(base, twin)


def test_what_is_lost_is_missed_and_found_by_feeding_again(base: KnowledgeBase, model: GritModel) -> None:
    worker, intake = Worker(reader_of(model, base)), Intake(base, 1)
    intake.begin()
    batches = fed(base, *corpus())
    assert [len(batch.documents) for batch in batches] == [4, 4, 4]
    for parcel in read_all(worker, [batches[0], batches[2]]):
        intake.take(parcel)
    for parcel in read_all(worker, [batches[1]])[:1]:  # begun, and then its worker died
        intake.take(parcel)
    assert not intake.whole
    intake.begin()
    assert intake.written == 8
    again = fed(base, *corpus(), batch_size=1)
    assert [document.id for batch in again for document in batch.documents] == [f"doc {n}" for n in range(4, 8)]
    for parcel in read_all(worker, again):
        intake.take(parcel)
    intake.commit()
    assert intake.whole
    assert intake.report == AddReport(added=12, chunks=len(rows_of(base)))


@pytest.mark.parametrize("lost", ["first", "middle", "last"])
def test_a_missing_batch_is_noticed_wherever_it_was(base: KnowledgeBase, model: GritModel, lost: str) -> None:
    batches = fed(base, *corpus())
    del batches[{"first": 0, "middle": 1, "last": -1}[lost]]
    intake = Intake(base, 1)
    intake.begin()
    for parcel in read_all(Worker(reader_of(model, base)), batches):
        intake.take(parcel)
    assert not intake.whole


def test_nothing_is_counted_before_it_is_written(base: KnowledgeBase, model: GritModel) -> None:
    done: list[int] = []
    intake = Intake(base, 1, on_done=done.append)
    intake.begin()
    for parcel in read_all(Worker(reader_of(model, base)), fed(base, *corpus(4))):
        intake.take(parcel)
    assert (intake.written, sum(done), base.store.size().documents) == (0, 0, 0)
    intake.commit()
    assert (intake.written, sum(done), base.store.size().documents) == (4, 4, 4)


def test_a_commit_waits_for_neither_too_many_documents_nor_too_long(
    base: KnowledgeBase, model: GritModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parcels, "_COMMIT_DOCUMENTS", 5)
    intake = Intake(base, 1)
    intake.begin()
    came = read_all(Worker(reader_of(model, base)), fed(base, *corpus(8)))
    for parcel in came[: len(came) // 2 + 2]:
        intake.take(parcel)
    assert intake.written >= 5
    monkeypatch.setattr(parcels, "_COMMIT_SECONDS", -1.0)
    for parcel in came:
        intake.take(parcel)
    assert intake.written == 8


# -- what is fed -------------------------------------------------------------------------------------------------


def test_only_what_changed_is_fed(base: KnowledgeBase, model: GritModel) -> None:
    documents = corpus(6)
    intake = Intake(base, 1, on_error=lambda id, reason: None)
    worker = Worker(reader_of(model, base))
    intake.begin()
    for parcel in read_all(worker, fed(base, *documents)):
        intake.take(parcel)
    intake.commit()
    documents[1] = Document("something else entirely", id="doc 1")
    documents[2] = Document(documents[2].text, id="doc 2", metadata={"n": "two"})
    batches = fed(base, *documents, Failure("broken.pdf", "cannot be opened"))
    assert [
        (document.id, known) for batch in batches for document, known in zip(batch.documents, batch.known, strict=True)
    ] == [("doc 1", True)]
    assert [document.id for batch in batches for document in batch.retagged] == ["doc 2"]
    assert sum(batch.skipped for batch in batches) == 4
    assert [batch.last for batch in batches] == [False] * (len(batches) - 1) + [True]
    second = Intake(base, 1, on_error=lambda id, reason: None)
    second.begin()
    for parcel in read_all(worker, batches):
        second.take(parcel)
    second.commit()
    assert second.whole
    assert second.report == AddReport(updated=2, skipped=4, failed=1, chunks=1)
    rows = rows_of(base)
    assert rows["doc 1#0"].text == "something else entirely"
    assert rows["doc 2#0"].tags == ('["n", "two"]',)


def test_a_share_of_unchanged_documents_is_told_of_as_it_is_read(
    base: KnowledgeBase, model: GritModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parcels, "_TALLY", 3)
    monkeypatch.setattr("gritkit.rag.adding._DOCUMENTS_AT_ONCE", 2)
    documents = corpus(8)
    base.replace(
        [
            row
            for rows, _ in reader_of(model, base).read(
                [piece for document in documents for piece in reader_of(model, base).cut(document)]
            )
            for row in rows
        ]
    )
    batches = fed(base, *documents)
    assert [batch.skipped for batch in batches] == [4, 4, 0]
    assert [batch.number for batch in batches] == [0, 1, 2]


def test_long_documents_make_smaller_batches(base: KnowledgeBase) -> None:
    big = [Document(f"{number} " * 20_000, id=str(number)) for number in range(3)]
    assert [len(batch.documents) for batch in fed(base, *big, *corpus(3), batch_size=16)] == [1, 1, 1 + 3]
    assert [len(batch.documents) for batch in fed(base)] == [0]


# -- what fails --------------------------------------------------------------------------------------------------


class Poisoned(Reader):
    """Fails where a text has a word."""

    failure: Exception = RuntimeError("the kernel gave up\nand said why")

    def read(self, pieces: Sequence[Piece]) -> Iterator[tuple[list[Row], list[parcels.Block]]]:
        if any("poison" in piece.text for piece in pieces):
            raise self.failure
        return super().read(pieces)


def test_a_document_fails_alone(base: KnowledgeBase, model: GritModel) -> None:
    bad = [Document("this is poison", id="bad"), Document("  ", id="empty")]
    worker = Worker(Poisoned(model, base.manifest, BlockCoder(model, "int8")))
    told: dict[str, str] = {}
    intake = Intake(base, 1, on_error=told.__setitem__)
    intake.begin()
    for parcel in read_all(worker, fed(base, *corpus(6), *bad, batch_size=16)):
        intake.take(parcel)
    intake.commit()
    assert intake.whole
    assert intake.report == AddReport(added=6, failed=2, chunks=len(rows_of(base)))
    assert told == {
        "bad": "document 'bad' could not be read: RuntimeError: the kernel gave up",
        "empty": "document 'empty' cannot be added: it is empty: drop it or give it words",
    }
    assert not any(row.document in told for row in rows_of(base).values())


def test_an_error_that_spoils_the_process_is_not_put_on_a_document(base: KnowledgeBase, model: GritModel) -> None:
    worker = Worker(Poisoned(model, base.manifest, BlockCoder(model, "int8")), fatal=(RuntimeError,))
    with pytest.raises(RuntimeError, match="gave up"):
        list(worker.read(fed(base, Document("this is poison"))[0]))


def test_without_a_listener_the_first_refused_document_raises(base: KnowledgeBase, model: GritModel) -> None:
    intake = Intake(base, 1)
    intake.begin()
    (parcel,) = read_all(Worker(reader_of(model, base)), fed(base, Failure("a.pdf", "a.pdf cannot be opened")))
    with pytest.raises(InputError, match=r"a.pdf cannot be opened"):
        intake.take(parcel)


def test_the_refused_are_listed_once_and_left_out_when_asked(base: KnowledgeBase) -> None:
    told: list[str] = []
    intake = Intake(base, 1, on_error=lambda id, reason: told.append(id))
    for _ in range(2):
        intake.refuse(Failure("a", "no"))
    assert told == ["a"]
    again = list(feed(share_of(*corpus(2)), 0, base, batch_size=4, leave_out=frozenset({"doc 0"})))
    assert [document.id for batch in again for document in batch.documents] == ["doc 1"]


def test_of_one_id_in_one_commit_the_later_stays(base: KnowledgeBase, model: GritModel) -> None:
    intake = Intake(base, 1)
    intake.begin()
    twice = [Document(LONG, id="same"), Document("second version", id="same")]
    for parcel in read_all(Worker(reader_of(model, base)), fed(base, *twice)):
        intake.take(parcel)
    intake.commit()
    assert intake.whole
    assert [row.text for row in rows_of(base).values()] == ["second version"]
