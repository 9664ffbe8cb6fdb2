from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from gritkit.cli.engine import FileShare
from gritkit.rag import Document
from gritkit.rag.sources import Failure
from tests.cli.conftest import Result

Run = Callable[..., Result]


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "fox.md").write_text("the quick brown fox jumps over the lazy dog")
    (docs / "plan.txt").write_text("attention sees what the plan shows it")
    (docs / "broken.pdf").write_bytes(b"no PDF")
    return docs


def test_options_of_the_cluster_warn_without_it(run: Run, docs: Path) -> None:
    pytest.importorskip("lancedb")
    result = run("index", "kb", "docs/fox.md", "--ray-address", "auto", "--batch-size", "3")
    assert result.code == 0
    assert result.stderr.splitlines()[:2] == [
        "Warning: --ray-address has no effect without --engine ray",
        "Warning: --batch-size has no effect without --engine ray",
    ]


def test_the_cluster_needs_a_model_and_no_client(run: Run, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    assert "is neither host:port" in run("index", "kb", "docs", "--engine", "ray", "--ray-address", "ray://a:1").error
    monkeypatch.delenv("GRITKIT_MODEL")
    assert "no model" in run("index", "kb", "docs", "--engine", "ray").stderr


def test_a_share_opens_the_files_anew_wherever_it_is(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(docs.parent)
    share = pickle.loads(pickle.dumps(FileShare(["docs"], "text", 1000)))
    first, second = list(share()), list(share())
    assert first == second
    assert [one.id for one in first if isinstance(one, Document)] == ["docs/fox.md", "docs/plan.txt"]
    assert [one.where for one in first if isinstance(one, Failure)] == ["docs/broken.pdf"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings(
    # Ray's own: its data context sets settings that it deprecates, and leaves processes to the end of the interpreter
    r"ignore:`\w+` is deprecated:DeprecationWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore:.*Ray will no longer override accelerator:FutureWarning",
)
def test_index_on_a_cluster_of_its_own_then_locally(run: Run, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lancedb")
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's processes are as patient as the tests otherwise
    result = run("index", "kb", "docs", "--format", "json", "--engine", "ray", "--chunk-tokens", "40")
    assert result.code == 1, result.stderr
    report = json.loads(result.out)
    (failure,) = report.pop("failures")
    assert failure.startswith("docs/broken.pdf: cannot be read as PDF")
    assert report == {"added": 2, "updated": 0, "skipped": 0, "failed": 1, "documents": 2}
    assert not ray.is_initialized()
    again = json.loads(run("index", "kb", "docs", "--format", "json").out)
    assert (again["added"], again["skipped"], again["failed"]) == (0, 2, 1)
