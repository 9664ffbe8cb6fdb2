"""The real ``gritkit index``, killed with -9 again and again while it writes."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.cli.conftest import environment, gritkit

pytest.importorskip("lancedb")

NUM_KILLS, NUM_DOCUMENTS, AT_ONCE = 10, 3000, 256


def killed(kb: Path, rows: Path, model: Path, blocks: int) -> None:
    """Index until so many block files are there in the moment of the kill; which of them have rows then is chance."""
    command = [sys.executable, "-m", "gritkit", "index", str(kb), str(rows), "-m", str(model)]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE) as process:
        while sum(1 for _ in kb.rglob("*.kv")) < blocks:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.05)
                raise AssertionError(process.communicate()[1].decode())
        process.kill()
    assert process.returncode == -9


def documents(kb: Path) -> Counter[str]:
    """How often each document is there; none of them is damaged or without its key-values."""
    from gritkit.rag.base import KnowledgeBase

    with KnowledgeBase.open(kb) as base:
        report = base.verify()
        assert (report.damaged, report.missing) == ([], 0)
        return Counter(row.document for batch in base.store.scan() for row in batch)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_what_was_committed_stays_whole_and_is_found(model_folder: Path, tmp_path: Path) -> None:
    kb, rows = tmp_path / "kb", tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"id": str(n), "text": f"number {n}"}) + "\n" for n in range(NUM_DOCUMENTS)))
    rng = random.Random(0)
    before: Counter[str] = Counter()
    for _ in range(NUM_KILLS):
        there = sum(1 for _ in kb.rglob("*.kv"))
        killed(kb, rows, model_folder, there + rng.randint(1, AT_ONCE))
        after = documents(kb)
        assert set(after.values()) <= {1}
        assert before.keys() <= after.keys()
        assert len(after) % AT_ONCE == 0  # whole commits
        before = after
    assert AT_ONCE < len(before) < NUM_DOCUMENTS  # some runs came to a commit, and none to the end
    last = gritkit("index", str(kb), str(rows), "-m", str(model_folder), "--format", "json")
    report = json.loads(last.out)
    assert (report["skipped"], report["added"]) == (len(before), NUM_DOCUMENTS - len(before))
    assert documents(kb) == Counter(str(n) for n in range(NUM_DOCUMENTS))
    found = gritkit("ask", str(kb), "number 7", "-m", str(model_folder), "--search", "text", "--format", "json",
                    "--max-new-tokens", "1")  # fmt: skip
    assert json.loads(found.out)["sources"][0]["id"] == "7"
