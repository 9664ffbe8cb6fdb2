"""Fifty of the kills of ``gritkit eval crash``, and that it notices what it looks for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("lancedb")
pytest.importorskip("xxhash")
from gritkit.rag.base import KnowledgeBase
from gritkit_eval.crash import Life, Outcome, Process, Settings, run
from gritkit_eval.crash_material import MANIFEST, made


@pytest.mark.slow
def test_nothing_is_lost_and_nothing_is_half(tmp_path: Path) -> None:
    outcome = run(Settings(rounds=50, seed=1, folder=tmp_path))
    assert outcome.failures == [], outcome.text()
    assert outcome.rounds == 50
    assert outcome.counts["checked"] > 500
    assert outcome.counts["happened"]
    assert outcome.counts["not happened"]
    assert {kind for _, kind in outcome.kills} >= {"index", "upsert", "delete"}


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with Process(tmp_path_factory.mktemp("crash")) as started:
        yield started


def _lose_a_document(base: KnowledgeBase) -> None:
    base.delete(["d1"])


def _half_a_document(base: KnowledgeBase) -> None:
    rows, _ = made("d2", 2)
    base.store.replace(rows[:-1] if len(rows) > 1 else [rows[0], rows[0]])


def _an_older_version(base: KnowledgeBase) -> None:
    base.replace(*made("d1", 9))


def _an_unknown_document(base: KnowledgeBase) -> None:
    base.replace(*made("d3", 3))


def _lose_a_block(base: KnowledgeBase) -> None:
    base.blocks.delete(made("d2", 2)[0][0].block_key)


def _a_block_of_another(base: KnowledgeBase) -> None:
    (one,), (other,) = (
        list(base.blocks.folder.rglob(f"{made(*of)[0][0].block_key}*")) for of in (("d1", 1), ("d2", 2))
    )
    one.write_bytes(other.read_bytes())


def _half_of_an_operation(base: KnowledgeBase) -> None:
    base.replace(*made("d1", 7))  # d2 was to become version 8 with it


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_lose_a_document, "d1: version 0 instead of 1"),
        (_half_a_document, "d2 is neither whole nor absent"),
        (_an_older_version, "d1: version 9 instead of 1"),
        (_an_unknown_document, "d3: version 3 instead of 0"),
        (_lose_a_block, "1 blocks are missing"),
        (_a_block_of_another, "1 blocks are damaged"),
        (_half_of_an_operation, "neither the old nor the new state: d1: version 7 instead of 1"),
        (lambda base: None, ""),
    ],
)
def test_it_notices(process: Process, tmp_path: Path, harm: Callable[[KnowledgeBase], None], said: str) -> None:
    life = Life(process, 0, 0, str(tmp_path / "kb"), Outcome(), threading.Lock())
    life._documents = {"d1": 1, "d2": 2}
    with KnowledgeBase.open(tmp_path / "kb", manifest=MANIFEST) as base:
        for document, version in life._documents.items():
            base.replace(*made(document, version))
        base.compact()
        harm(base)
    failures = life._check({"kind": "upsert", "documents": {"d1": 7, "d2": 8}}, deep=False)
    assert (said in "\n".join(failures)) if said else failures == []
