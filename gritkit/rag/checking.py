"""What must hold for the rows of a document, whoever wrote them.

This module knows nothing about stores or where the rows came from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from gritkit.rag.manifest import Manifest
from gritkit.rag.store import Row

_UNIT_ERROR = 1e-3  # a vector that went through half precision on its way is still one


def by_document(batches: Iterable[Sequence[Row]]) -> Iterator[list[Row]]:
    """The rows of each document, where those of one stand together but may be spread over batches."""
    rows: list[Row] = []
    for batch in batches:
        for row in batch:
            if rows and rows[0].document != row.document:
                yield rows
                rows = []
            rows.append(row)
    if rows:
        yield rows


def faults(rows: Sequence[Row], manifest: Manifest) -> list[str]:
    """What is wrong with the rows of one document, a line each; empty for a whole one."""
    name = f"document {rows[0].document!r:.100}"
    found = []
    numbers = [row.number for row in rows]
    counts = {row.count for row in rows}
    if len(counts) != 1 or numbers != list(range(max(counts))):
        found.append(f"{name}: has chunks {numbers[:10]} of {max(counts)}")
    if len({row.digest for row in rows}) != 1:  # metadata may say where in the document a chunk stands
        found.append(f"{name}: its chunks disagree about the document")
    for row in rows:
        what = _fault(row, manifest)
        if what:
            found.append(f"{name}, chunk {row.number}: {what}")
    return found


def _fault(row: Row, manifest: Manifest) -> str:
    if row.fingerprint != manifest.fingerprint:
        return f"was read by another model ({row.fingerprint:.12})"
    try:
        if not isinstance(json.loads(row.metadata), dict):
            return "its metadata is no JSON object"
    except (ValueError, RecursionError):
        return "its metadata is no JSON"
    if row.vector is None or row.vector.shape != (manifest.dim,):
        return f"has no vector of length {manifest.dim}"
    if not np.isfinite(row.vector).all():
        return "its vector has numbers that are not finite"
    length = float(np.linalg.norm(row.vector.astype(np.float64)))
    if abs(length - 1) > _UNIT_ERROR:
        return f"its vector has length {length:.4g} instead of 1"
    if any(token < 0 for token in row.token_ids):
        return "its token ids are negative"
    return ""
