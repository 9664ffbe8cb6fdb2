from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from gritkit.errors import InputError, MissingExtraError
from gritkit.model import GritModel
from gritkit.rag import AddReport, Document, Rag
from gritkit.rag.base import KnowledgeBase
from gritkit.rag.ray_cluster import RayOptions
from gritkit.rag.ray_index import ModelSource, add_on_ray
from gritkit.rag.store import Row
from tests.models import TEXTS, shared_model

pytestmark = [
    # Ray's own: its data context sets settings that it deprecates, and leaves processes to the end of the interpreter
    pytest.mark.filterwarnings(r"ignore:`\w+` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:.*Ray will no longer override accelerator:FutureWarning"),
]
CHUNK_TOKENS = 64
LONG = "\n\n".join(f"{TEXTS[0]} and {TEXTS[1]}, part {number}" for number in range(12))
MARK = Document("  ", id="mark")
"""Without words, so it is refused, and the test hears of it while others are being read."""
DEADLY = Document("whoever reads this dies", id="deadly")


class DeadlySource(ModelSource):
    """A model whose process is killed by one text, as by a kernel that runs out of memory."""

    def load(self, device: str | None) -> GritModel:
        model = super().load(device)
        read = model.read_tokens

        def deadly(sequences: Sequence[Any]) -> Any:
            texts = [model.tokens.backend.decode(one.ids.tolist()) for one in sequences]
            if any(DEADLY.text in text for text in texts):
                os.kill(os.getpid(), signal.SIGKILL)
            return read(sequences)

        model.read_tokens = deadly  # type: ignore[method-assign]
        return model


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    shared_model("llama").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two machines of one CPU each, both of them here; this process is connected to the first."""
    ray = pytest.importorskip("ray", reason="the package ray is not installed")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # Ray's processes are as patient as the tests otherwise
        patch.setenv("RAY_raylet_start_wait_time_s", "300")
        size = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args=size)
        made.add_node(**size)
        ray.init(address=made.address, log_to_driver=False, logging_level="critical")
        yield made
        ray.shutdown()
        made.shutdown()


def corpus(count: int) -> list[Document]:
    """Short ones, and every fourth of several chunks."""
    texts = [LONG if number % 4 == 3 else TEXTS[number % 3] for number in range(count)]
    return [
        Document(f"{text} {number}", id=f"doc {number}", metadata={"n": number}) for number, text in enumerate(texts)
    ]


def index(folder: Path, source: ModelSource, *shares: Iterable[Document], **options: Any) -> AddReport:
    opened = [functools.partial(list, share) for share in shares]
    return add_on_ray(folder, source, opened, chunk_tokens=CHUNK_TOKENS, **options)


def rows_of(base: KnowledgeBase) -> dict[str, Row]:
    rows = [row for rows in base.store.scan() for row in rows]
    found = {row.id: row for row in rows}
    assert len(found) == len(rows)
    return found


def assert_as_local(folder: Path, model_folder: Path, documents: Sequence[Document], local: Path) -> None:
    """Every field of every row as the local engine has it; vectors to 1e-5, blocks to one step of their codes."""
    with Rag.open(local, GritModel.from_pretrained(model_folder, device="cpu"), chunk_tokens=CHUNK_TOKENS) as rag:
        rag.add(documents)
    with KnowledgeBase.open(folder) as base, KnowledgeBase.open(local) as reference:
        mine, theirs = rows_of(base), rows_of(reference)
        assert mine.keys() == theirs.keys()
        for id, row in mine.items():
            twin = theirs[id]
            for name in ("text", "count", "metadata", "tags", "digest", "token_ids", "block_key", "fingerprint"):
                assert getattr(row, name) == getattr(twin, name), (id, name)
            assert row.vector is not None
            np.testing.assert_allclose(row.vector, twin.vector, atol=1e-5)
            block, expected = base.blocks.get(row.block_key), reference.blocks.get(row.block_key)
            assert block is not None
            assert expected is not None
            for one, other in zip(block.arrays, expected.arrays, strict=True):
                np.testing.assert_allclose(one.astype(np.float64), other.astype(np.float64), rtol=1e-3, atol=1)
        assert not base.verify().damaged
        assert base.stats().blocks == len({row.block_key for row in mine.values()})


def kill_an_actor(node: Any) -> None:
    """Of this machine of the cluster, in the middle of what it does."""
    (raylet,) = node.all_processes["raylet"]
    workers = psutil.Process(raylet.process.pid).children()
    (actor, *_) = [one for one in workers if "ReadStage" in " ".join(one.cmdline())]
    os.kill(actor.pid, signal.SIGKILL)


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_actor_a_lost_machine_and_a_deadly_document_lose_nothing_else(
    cluster: Any, model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The machine that stays has no room for a second actor, so the one that was lost never comes back."""
    import ray

    documents = corpus(120)
    told: dict[str, str] = {}

    def on_error(id: str, reason: str) -> None:
        told[id] = reason
        if id == MARK.id:
            kill_an_actor(cluster.head_node)
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

    shares = [[*documents[:2], MARK, *documents[2:60]], [*documents[60:90], DEADLY, *documents[90:]]]
    source = DeadlySource(str(model_folder))
    report = index(tmp_path / "kb", source, *shares, options=RayOptions(batch_size=2), on_error=on_error)
    assert "workers were lost" in caplog.text
    assert told == {
        "mark": "document 'mark' cannot be added: it is empty: drop it or give it words",
        "deadly": "document 'deadly' could not be read: each worker died that tried",
    }
    assert (report.added, report.updated, report.skipped, report.failed) == (120, 0, 0, 2)
    assert_as_local(tmp_path / "kb", model_folder, documents, tmp_path / "local")

    documents[5] = Document("another text", id="doc 5")
    documents[6] = Document(documents[6].text, id="doc 6", metadata={"n": "six"})
    again = index(tmp_path / "kb", ModelSource(str(model_folder)), documents)
    assert again == AddReport(updated=2, skipped=118, chunks=1)
    with pytest.raises(InputError, match="connected to Ray already"):
        index(tmp_path / "kb", source, documents, options=RayOptions(address="127.0.0.1:6379"))
    assert ray.is_initialized()  # whoever connected disconnects


@pytest.mark.ray
@pytest.mark.slow
def test_a_model_that_is_not_there_is_said_before_anything_is_made(cluster: Any, tmp_path: Path) -> None:
    from gritkit.errors import CheckpointError

    with pytest.raises(CheckpointError, match="nowhere"):
        index(tmp_path / "kb", ModelSource(str(tmp_path / "nowhere")), corpus(1))
    assert not (tmp_path / "kb").exists()


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"'ray'.*gritkit\[scale\]"):
        index(tmp_path / "kb", ModelSource("anything"), [])
