"""The process of the crash test that works, dies and checks: without torch, forked from one that has imported the rest.

``python -m gritkit_eval.crash_worker`` reads one task a line from stdin, forks for each, and kills the child when told
to. Replies are lines of JSON: what the child announces, then ``{"exit": status}``. A line is one write of at most a
pipe's atomic size or comes when nobody else writes, so a kill never leaves half of one.

This module knows nothing about which outcomes are right; ``crash`` does.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gritkit.rag.base import KnowledgeBase
from gritkit.rag.store import Row
from gritkit_eval.crash_material import MANIFEST, made, same, version_of, word
from gritkit_eval.crash_points import arm

NUM_DOCUMENTS = 40
HUNG = -99
"""Exit status of a child that was given up."""
_HUNG_S = 120.0
_LOOKED_UP = 6


def tell(**line: Any) -> None:
    os.write(1, json.dumps(line).encode() + b"\n")


def work(task: dict[str, Any]) -> None:
    """Operations on a knowledge base, each announced and then acknowledged, until their number or a kill."""
    rng = random.Random(task["seed"])
    give_store = arm(task["point"]) if task["point"] else None
    tell(begin={"kind": "open", "documents": {}})
    with KnowledgeBase.open(task["where"], manifest=MANIFEST) as base:
        if give_store:
            give_store(base.store, Path(task["where"]))
        tell(done=True)
        there: dict[str, int] = dict(task["documents"])
        version = task["version"]
        for _ in range(task["operations"]):
            kind, documents, version = _chosen(rng, there, version)
            tell(begin={"kind": kind, "documents": documents})
            if kind == "delete":
                base.delete(list(documents))
            elif kind == "compact":
                base.compact()
            elif kind == "gc":
                base.gc(min_age_s=0)
            else:
                parts = [made(document, number) for document, number in documents.items()]
                base.replace([row for rows, _ in parts for row in rows], [one for _, some in parts for one in some])
            tell(done=True)
            there = {**there, **documents}
            there = {document: number for document, number in there.items() if number}


def _chosen(rng: random.Random, there: dict[str, int], version: int) -> tuple[str, dict[str, int], int]:
    """(kind, what it sets: document -> version or 0 for gone, last version used)."""
    new = [f"d{number}" for number in range(NUM_DOCUMENTS) if f"d{number}" not in there]
    kind = rng.choices(["index", "upsert", "delete", "compact", "gc"], [40, 30, 15, 9, 6])[0]
    if kind == "index" and not new:
        kind = "delete"
    if kind in ("upsert", "delete") and not there:
        kind = "index"
    if kind in ("compact", "gc"):
        return kind, {}, version
    known = sorted(there)
    picked = rng.sample(new, min(len(new), rng.randint(1, 4))) if kind == "index" else []
    if kind in ("upsert", "delete"):
        picked = rng.sample(known, min(len(known), rng.randint(1, 3)))
    if kind == "delete":
        return kind, dict.fromkeys(picked, 0), version
    documents = {}
    for document in picked:
        version += 1
        documents[document] = version
    return kind, documents, version


def check(task: dict[str, Any]) -> None:
    """What is really there, and everything about it that is not as it must be."""
    failures: list[str] = []
    with KnowledgeBase.open(task["where"], manifest=MANIFEST) as base:
        rows: dict[str, list[Row]] = {}
        for batch in base.store.scan():
            for row in batch:
                rows.setdefault(row.document, []).append(row)
        found: dict[str, int] = {}
        for document, parts in rows.items():
            found[document] = version_of(parts[0])
            expected, _ = made(document, found[document])
            if len(parts) != len(expected) or not all(map(same, parts, expected)):
                failures.append(f"{document} is neither whole nor absent: {[row.digest for row in parts]}")
        size = base.store.size()
        if (size.documents, size.chunks) != (len(rows), sum(map(len, rows.values()))):
            failures.append(f"the store says {size} and has {len(rows)} documents")
        rng = random.Random(task["seed"])
        looked_up = {*task["unsure"], *rng.sample(sorted(rows), min(len(rows), _LOOKED_UP))}
        failures += _not_found(base, {document: rows.get(document, []) for document in sorted(looked_up)}, task)
        missing, wrong = _blocks(base, rows)
        failures += wrong
        orphans = 0
        if missing:  # a reader would recompute them; but blocks come before rows, and nothing was evicted
            failures.append(f"{missing} blocks are missing")
        if task["deep"]:
            orphans = base.gc(min_age_s=0).blocks
            kept = set(base.blocks.keys())
            if kept - {row.block_key for parts in rows.values() for row in parts}:
                failures.append("gc left blocks that no row needs")
            report = base.verify()
            failures += report.damaged + report.repaired
    tell(found=found, failures=failures, missing=missing, orphans=orphans)


def _not_found(base: KnowledgeBase, looked_up: dict[str, list[Row]], task: dict[str, Any]) -> Iterator[str]:
    """Documents that search does not find, and gone ones that it does."""
    for document, rows in looked_up.items():
        got = base.store.get([document]).get(document, [])
        if [row.id for row in got] != [row.id for row in rows] or (document in base.store.heads([document])) != bool(
            rows
        ):
            yield f"{document} is not what get and heads say"
        for row in rows:
            assert row.vector is not None
            nearest = [hit.id for hit, score in base.store.nearest(row.vector, 1) if score > 0.999]
            if nearest != [row.id]:
                yield f"{row.id} is not found by its vector: {nearest}"
            own = word(document, version_of(row), row.number)
            matching = [hit.id for hit, _ in base.store.matching(own, 3)]
            if matching != [row.id]:
                yield f"{row.id} is not found by its word: {matching}"
        now = version_of(rows[0]) if rows else 0
        for version in set(task["unsure"].get(document, [])) - {now, 0}:
            if base.store.matching(word(document, version, 0), 1):
                yield f"{document} is found by a word of version {version}, which is gone"


def _blocks(base: KnowledgeBase, rows: dict[str, list[Row]]) -> tuple[int, list[str]]:
    """(blocks that rows need and that are not there, wrong ones)."""
    missing, wrong = 0, []
    for document, parts in rows.items():
        _, blocks = made(document, version_of(parts[0]))
        for expected, got in zip(blocks, base.blocks.get_many([block.key for block in blocks]), strict=True):
            if got is None:
                missing += 1
            elif not np.array_equal(got.arrays[0], expected.arrays[0]):
                wrong.append(f"block {expected.key[:12]} of {document} reads back wrong")
    counts = base.blocks.counts
    if counts["missing"] + counts["damaged"] != missing:
        wrong.append(f"{missing} blocks missed but counted {dict(counts)}")
    torn = [key for key in base.blocks.keys() if base.blocks.verify(key)]  # noqa: SIM118 - a store, not a dict
    if torn:  # whether a row names them or not
        wrong.append(f"{len(torn)} blocks are damaged, and files are whole or absent")
    return missing, wrong


def serve() -> None:
    """One child a line, until stdin ends."""
    for line in sys.stdin:
        task = json.loads(line)
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            _child(task)
        tell(exit=_ended(child, task.get("kill_after")))


def _child(task: dict[str, Any]) -> None:
    try:
        {"work": work, "check": check}[task["task"]](task)
        os._exit(0)
    except BaseException:
        tell(error=traceback.format_exc()[-1500:])
        os._exit(1)


def _ended(child: int, kill_after: float | None) -> int:
    """Status of a child that has ended by itself, by its own hand or by ours."""
    end = time.monotonic() + (_HUNG_S if kill_after is None else kill_after)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:  # it is still ours to kill: nobody has waited for it
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            return HUNG if kill_after is None else os.waitstatus_to_exitcode(status)
        time.sleep(0.0005)


def warm_up() -> None:
    """Import now what every child would; nothing is opened, so a fork is safe."""
    for module in ("lancedb", "lancedb.index", "lancedb.query", "pyarrow", "psycopg", "pgvector.psycopg",
                   "gritkit.rag.lance", "gritkit.rag.postgres"):  # fmt: skip
        with contextlib.suppress(ImportError):
            importlib.import_module(module)


if __name__ == "__main__":
    warm_up()
    assert "torch" not in sys.modules
    tell(ready=True)
    serve()
