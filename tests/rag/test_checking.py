from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from gritkit.rag.checking import by_document, faults
from tests.rag.rows import DIM, MANIFEST, document, unit


def test_whole_documents_have_no_faults() -> None:
    assert faults(document("a", 3)[0], MANIFEST) == []
    half, _ = document("a", 1)
    half = [dataclasses.replace(half[0], vector=half[0].vector.astype(np.float16).astype(np.float32))]  # type: ignore[union-attr]
    assert faults(half, MANIFEST) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"fingerprint": "other"}, "was read by another model (other)"),
        ({"metadata": "[]"}, "its metadata is no JSON object"),
        ({"metadata": "{"}, "its metadata is no JSON"),
        ({"metadata": "[" * 100_000}, "its metadata is no JSON"),
        ({"vector": None}, "has no vector of length 8"),
        ({"vector": unit(1)[:4]}, "has no vector of length 8"),
        ({"vector": np.full(DIM, np.nan, np.float32)}, "its vector has numbers that are not finite"),
        ({"vector": unit(1) * 2}, "its vector has length 2 instead of 1"),
        ({"vector": np.zeros(DIM, np.float32)}, "its vector has length 0 instead of 1"),
        ({"token_ids": (1, -1)}, "its token ids are negative"),
    ],
)
def test_each_fault_is_named(change: dict[str, Any], fault: str) -> None:
    first, second = document("a", 2)[0]
    assert faults([first, dataclasses.replace(second, **change)], MANIFEST) == [f"document 'a', chunk 1: {fault}"]


def test_chunks_that_do_not_belong_together() -> None:
    rows, _ = document("a", 3)
    for wrong in ([rows[0], rows[2]], rows[:2], [rows[1], rows[0], rows[2]], [*rows, rows[2]]):
        assert "has chunks [" in faults(wrong, MANIFEST)[0]
    assert "has chunks [0, 1, 2] of 4" in faults([*rows[:2], dataclasses.replace(rows[2], count=4)], MANIFEST)[0]
    mixed = [rows[0], document("a", 3, version=1)[0][1], rows[2]]
    assert faults(mixed, MANIFEST) == ["document 'a': its chunks disagree about the document"]


def test_rows_are_grouped_over_batches() -> None:
    a, b, c = (document(name, 3)[0] for name in "abc")
    groups = by_document([[*a, *b[:1]], b[1:2], [], [b[2], *c]])
    assert [[row.id for row in group] for group in groups] == [[row.id for row in one] for one in (a, b, c)]
    assert list(by_document([])) == []
