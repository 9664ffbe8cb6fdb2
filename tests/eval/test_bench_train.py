from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from gritkit import GritModel
from gritkit.errors import GritkitError, InputError, RecordError
from gritkit_eval.bench import train
from gritkit_eval.bench.harness import WORKERS
from gritkit_eval.bench.train import _Entry
from gritkit_eval.bench.train_material import batch_of, choose, num_tokens, part_of, random_pairs
from gritkit_eval.bench.train_result import Result, agreement, check_loss
from gritkit_eval.cli import app
from tests.models import grit_model

TRIPLE = '{{"query": "question {0}", "pos": ["its answer, number {0}"], "neg": ["no answer {0} at all, but longer"]}}\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Records of both kinds and a tiny model."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "triples.jsonl").write_text("".join(TRIPLE.format(i) for i in range(8)), encoding="utf-8")
    rows = ['{"instruction": "do", "input": "this", "output": "done so"}\n', '{"text": "raw words"}\n']
    (data / "write.jsonl").write_text("".join(rows), encoding="utf-8")
    grit_model("mistral").save_pretrained(tmp_path / "model")
    return tmp_path


def arguments(folder: Path, *more: str) -> list[str]:
    given = ["--data", folder / "data", "--model", folder / "model", "--num", 8, "--num-examples", 2, "--rounds", 1]
    return ["bench", "train", *map(str, given), "--results", str(folder / "RESULTS.md"), *more]


def test_texts_are_unique_and_the_same_each_time(folder: Path) -> None:
    (folder / "data" / "more.jsonl").write_text(TRIPLE.format(3), encoding="utf-8")
    material = choose([folder / "data"], None, 8, 2)
    assert material == choose([folder / "data"], None, 8, 2)
    texts = [text for triple in material.triples for text in triple]
    assert len(set(texts)) == 24
    chats = [record for record in material.examples if record.messages]
    assert [message["content"] for message in chats[0].messages] == ["do\n\nthis", "done so"]
    with pytest.raises(InputError, match="8 triples with a negative and 2 examples found, 9 and 2 wanted"):
        choose([folder / "data"], None, 9, 2)
    (folder / "data" / "bad.jsonl").write_text('{"query": "alone"}\n', encoding="utf-8")
    with pytest.raises(RecordError, match=r"bad\.jsonl:1"):
        choose([folder / "data"], None, 8, 2)


def test_docstrings_stand_in_for_data() -> None:
    material = choose([], None, 300, 50)
    assert len(material.triples) == 300
    assert all(query != positive != negative for query, positive, negative in material.triples)


def test_a_batch_is_cut_and_counted(folder: Path) -> None:
    tokens = GritModel.from_pretrained(folder / "model", prompt_format="grit").tokens
    material = choose([folder / "data"], None, 8, 2)
    batch = batch_of(material, tokens, 30)
    assert batch["pool_from"] == len(tokens.encode("<|embed|>\n")) + len(tokens.bos_ids)
    lengths = [len(ids) for name in ("queries", "positives", "negatives") for ids in batch[name]]
    assert max(lengths) == 30
    assert num_tokens({**batch, "examples": []}) == sum(lengths)
    assert [len(one["ids"]) == len(one["targets"]) for one in batch["examples"]] == [True] * len(batch["examples"])
    part = part_of(batch, 3, 1)
    assert (part["queries"], len(part["examples"])) == (batch["queries"][:3], 1)


def test_random_pairs_are_of_one_length() -> None:
    pairs = random_pairs(5, 7, 100)
    assert [len(ids) for ids in pairs["queries"] + pairs["positives"]] == [7] * 10
    assert num_tokens(pairs) == 70


def test_steps_that_are_not_the_same_are_refused() -> None:
    reference = Result(2.0, {"a": np.array([3.0, 0.0]), "b": np.array([4.0])})
    turned = Result(2.0, {"a": np.array([3.0, 3e-4]), "b": np.array([4.0])})
    agrees = agreement("peer", "float32", turned, reference)
    assert agrees.gradient_error == pytest.approx(6e-5)
    assert agrees.one_minus_cosine == pytest.approx(6e-5**2 / 2, rel=1e-3)
    scaled = Result(2.0, {"a": np.array([3.3, 0.0]), "b": np.array([4.4])})
    with pytest.raises(GritkitError, match=r"peer \(float32\): its gradient differs from the .* by 1\.0e-01"):
        agreement("peer", "float32", scaled, reference)
    with pytest.raises(GritkitError, match=r"its loss is 2\.010000"):
        agreement("peer", "float32", Result(2.01, reference.gradient), reference)
    with pytest.raises(GritkitError, match=r"other parameters .* \(b\)"):
        agreement("peer", "float32", Result(2.0, {"a": reference.gradient["a"]}), reference)
    with pytest.raises(GritkitError, match=r"gritkit has 1\.000000"):
        check_loss("peer", "float32", float("nan"), 1.0, "gritkit")


@pytest.mark.slow
def test_a_tiny_run_of_every_contestant(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real processes; sentence-transformers by a number of texts and of tokens, each setting with one value."""
    fewer = {
        part: tuple(
            _Entry(e.name, e.worker, e.tries[:1], e.is_peer) for e in entries if e.tries != ({},) or not e.is_peer
        )
        for part, entries in train._ENTRIES.items()
    }
    monkeypatch.setattr(train, "_ENTRIES", fewer)
    run = CliRunner().invoke(app, arguments(folder, "--format", "json"), catch_exceptions=False)
    report = json.loads(run.stdout)
    rows = report["rows"]
    assert [(row["part"], row["contestant"]) for row in rows if row["contestant"] != "gritkit"] == [
        ("contrastive", "sentence-transformers, mini_batch_size=8"),
        ("contrastive", "sentence-transformers, mini_batch_num_tokens=1024"),
        ("unified", "transformers, padded, micro_batch=4"),
    ]
    for row in rows:
        assert row["agreement"]["gradient_error"] < 1e-5
        assert len(row["seconds"]) == 1
        assert row["growth"] is None or row["growth"] > 0
    assert rows[1]["gritkit_is"] == pytest.approx(rows[1]["seconds"][0] / rows[0]["seconds"][0])
    written = (folder / "RESULTS.md").read_text(encoding="utf-8")
    assert "## bench train" in written
    assert len([line for line in written.splitlines() if line.startswith("| ")]) == 2 + len(rows)
    assert report["versions"].keys() >= {"gritkit", "sentence-transformers", "torch", "transformers"}


@pytest.mark.slow
def test_a_contestant_with_another_loss_gets_no_figures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The padded step, but for its temperature."""
    script = (WORKERS / "train_padded.py").read_text(encoding="utf-8")
    assert "/ common.TEMPERATURE" in script
    wrong = folder / "wrong.py"
    path = f"import sys\nsys.path.insert(0, {str(WORKERS)!r})\n"
    wrong.write_text(path + script.replace("/ common.TEMPERATURE", "/ 0.06"), encoding="utf-8")
    entry = _Entry("wrong", str(wrong), ({"micro_batch": 4},))
    monkeypatch.setattr(train, "_ENTRIES", {"contrastive": (train._GRITKIT, entry)})
    with pytest.raises(GritkitError, match=r"wrong, micro_batch=4 \(float32\): its loss is"):
        CliRunner().invoke(app, arguments(folder), catch_exceptions=False)
    assert not (folder / "RESULTS.md").exists()
