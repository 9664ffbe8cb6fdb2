from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gritkit.rag.base import KnowledgeBase
from tests.cli.conftest import Result, gritkit
from tests.rag.rows import MANIFEST, block, document

pytest.importorskip("lancedb")
pytest.importorskip("xxhash")
Run = Callable[..., Result]


@pytest.fixture
def kb(tmp_path: Path) -> str:
    folder = tmp_path / "kb"
    with KnowledgeBase.open(folder, manifest=MANIFEST) as base:
        base.replace(*document("a", 3))
        base.replace(*document("b", 1))
        base.blocks.put(block("nobody's"))
    return str(folder)


def facts(result: Result) -> dict[str, object]:
    assert (result.code, result.stderr) == (0, "")
    return dict(json.loads(result.out))


def test_stats(run: Run, kb: str) -> None:
    found = facts(run("kb", "stats", kb, "--format", "json"))
    assert (found["documents"], found["chunks"], found["blocks"]) == (2, 4, 5)
    assert found["bytes"] == sum(path.stat().st_size for path in Path(kb).rglob("*") if path.is_file())
    text = run("kb", "stats", kb).out.splitlines()
    assert ["documents", "2"] in [line.split() for line in text]
    assert any("KiB)" in line for line in text)


def test_gc_and_compact(run: Run, kb: str) -> None:
    assert facts(run("kb", "gc", kb, "--format", "json"))["blocks"] == 0  # too young
    removed = facts(run("kb", "gc", kb, "--min-age", "0", "--format", "json"))
    assert (removed["blocks"], removed["generations"]) == (1, [])
    assert isinstance(facts(run("kb", "compact", kb, "--format", "json"))["bytes"], int)
    assert facts(run("kb", "stats", kb, "--format", "json"))["documents"] == 2


def test_verify_says_what_was_set_right_and_fails_for_what_was_not(run: Run, kb: str) -> None:
    assert facts(run("kb", "verify", kb, "--format", "json"))["damaged"] == []
    victim = sorted(Path(kb, "blocks").rglob("*.kv"))[0]
    victim.write_bytes(victim.read_bytes()[:-1])
    repaired = run("kb", "verify", kb)
    assert repaired.code == 0
    assert f"repaired: block {victim.name[:12]} was removed" in repaired.out
    with KnowledgeBase.open(kb) as base:
        base.store.replace(document("c", 2)[0][:1])  # half a document
    damaged = run("kb", "verify", kb, "--format", "json")
    assert damaged.code == 1
    assert json.loads(damaged.out)["damaged"] == ["document 'c': has chunks [0] of 2"]
    assert damaged.error.startswith(f"Error: 1 damages of {kb} are left")
    assert "damaged: document 'c': has chunks [0] of 2" in run("kb", "verify", kb).out


def test_export_and_import(run: Run, kb: str) -> None:
    assert run("kb", "export", kb, "out.zip", "--blocks").stderr == "wrote out.zip\n"
    assert run("kb", "import", "copy", "out.zip").stderr == "copy holds 2 documents, 4 chunks\n"
    before, after = (facts(run("kb", "stats", where, "--format", "json")) for where in (kb, "copy"))
    assert (before["documents"], before["chunks"], before["model"]) == (
        after["documents"], after["chunks"], after["model"],
    )  # fmt: skip
    assert after["blocks"] == 4  # not nobody's
    assert "is a knowledge base already" in run("kb", "import", "copy", "out.zip").error


@pytest.mark.parametrize("command", ["stats", "verify", "gc", "compact", "export"])
def test_a_mistyped_name_makes_nothing(run: Run, tmp_path: Path, command: str) -> None:
    result = run("kb", command, "nowhere", *(["out.zip"] if command == "export" else []))
    assert result.code == 1
    assert "there is no knowledge base at" in result.error
    assert list(tmp_path.iterdir()) == []


def test_it_needs_no_torch() -> None:
    code = (
        "import sys; from gritkit.cli import main; main(['kb', 'stats', 'nowhere']); sys.exit('torch' in sys.modules)"
    )
    assert gritkit(code=code).code == 0


def test_without_a_command_it_says_where_they_are_listed(run: Run) -> None:
    assert "See 'gritkit kb --help'" in run("kb").error
    assert "verify" in run("kb", "--help").out
