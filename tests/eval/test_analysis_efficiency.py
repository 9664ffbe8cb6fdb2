from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from gritkit.errors import InputError
from gritkit.metrics import spearman
from gritkit.model import GritModel
from gritkit_eval.analysis.variants import Variant, variants_of
from gritkit_eval.cli import app
from gritkit_eval.outcome import OutcomeFolder
from tests.models import grit_model

pytest.importorskip("mteb")

from gritkit_eval.analysis.efficiency import Settings, run
from gritkit_eval.analysis.throughput import rate, texts_of_tasks
from gritkit_eval.mteb.local import load_tasks

WORDS = ("beaver", "otter", "owl", "fox", "hare", "crow", "newt", "toad", "lynx", "deer", "mole", "wren")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """STS and retrieval of a dozen, and a tiny model."""
    write(
        tmp_path / "data/sts/animals/test.jsonl",
        [{"sentence1": f"the {a} runs", "sentence2": f"the {b} sleeps", "score": i % 5} for i, (a, b) in pairs()],
    )
    folder = tmp_path / "data/retrieval/animals"
    write(folder / "corpus.jsonl", [{"_id": one, "title": "", "text": f"the {one} sleeps all day"} for one in WORDS])
    write(folder / "queries.jsonl", [{"_id": f"q-{one}", "text": f"who is the {one}?"} for one in WORDS])
    write(folder / "qrels.jsonl", [{"query_id": f"q-{one}", "corpus_id": one, "score": 1} for one in WORDS])
    grit_model("llama", prompt_format="grit").save_pretrained(tmp_path / "model")
    return tmp_path


def pairs() -> list[tuple[int, tuple[str, str]]]:
    return list(enumerate(zip(WORDS, WORDS[::-1], strict=True)))


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def settings(folder: Path, **more: Any) -> Settings:
    given = {"models": (f"tiny={folder / 'model'}",), "data": folder / "data", "max_lengths": (56,)}
    return Settings(**{**given, **more})


def asked(**more: Any) -> list[Variant]:
    given: dict[str, Any] = {
        "dim": 64, "matryoshka": (), "num_layers": 24, "max_length": 512, "context_length": 512, "dims": (),
        "layers": (), "max_lengths": (), "dtypes": (),
    }  # fmt: skip
    return variants_of(**{**given, **more})


def test_variants_depart_in_one_thing_from_the_whole() -> None:
    made = asked(max_lengths=(64, 512), dtypes=("bfloat16", "float32"))
    assert [one.name for one in made] == [
        "whole", "32 dimensions", "16 dimensions", "int8 vectors", "binary vectors", "bfloat16 model", "12 layers",
        "6 layers", "64 tokens",
    ]  # fmt: skip
    assert [one.dim for one in asked(matryoshka=(48, 8)) if one.dim] == [48, 8]
    assert [one.dim for one in asked(matryoshka=(48, 8), dims=(5, 64)) if one.dim] == [5]
    assert [one.name for one in asked(layers=(1, 24, 5)) if one.layers] == ["5 layers", "1 layer"]
    assert not [one for one in asked(num_layers=1) if one.layers]
    for wrong in ({"dims": (65,)}, {"layers": (25,)}, {"layers": (0,)}, {"max_lengths": (513,)}, {"dtypes": ("int3",)}):
        with pytest.raises(InputError, match=r"65|layers 25 must be between 1 and 24|layers 0|513|int3"):
            asked(**wrong)


def test_bytes_of_a_vector() -> None:
    assert [one.num_bytes(60) for one in (Variant(), Variant(dim=20))] == [240, 80]
    assert [Variant(coding=coding).num_bytes(60) for coding in ("int8", "binary")] == [64, 8]


def test_cut_vectors_are_the_models_own() -> None:
    model = grit_model()
    texts = ["the beaver builds", "an otter swims"]
    whole = np.concatenate([model.embed(texts), np.zeros((1, model.dim), np.float32)])
    cut = Variant(curve="dimension", dim=10).apply(whole)
    assert np.allclose(cut[:2], model.embed(texts, dim=10), atol=1e-6)
    assert not cut[2].any()
    assert Variant().apply(whole) is whole
    coded = Variant(curve="coding", coding="int8").apply(whole)
    assert 0 < np.abs(coded - whole).max() <= np.abs(whole).max() / 127
    signs = Variant(curve="coding", coding="binary").apply(whole)
    assert np.array_equal(signs[:2] > 0, whole[:2] > 0)
    assert not signs[2].any()


def test_every_variant_is_measured_and_texts_are_read_once_for_each_way_of_reading(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    embed = GritModel.embed

    def counted(self: GritModel, texts: Sequence[str], **named: Any) -> Any:
        reads.append(len(texts))
        return embed(self, texts, **named)

    monkeypatch.setattr(GritModel, "embed", counted)
    report = run(settings(folder), OutcomeFolder(folder / "out"))
    assert [one.task for one in report.outcomes] == [
        "whole", "16 dimensions", "int8 vectors", "binary vectors", "bfloat16 model", "1 layer",
        "56 tokens",
    ]  # fmt: skip
    # four ways of reading: 24 sentences, 12 documents, 12 queries each, and four rounds of throughput
    texts = len(texts_of_tasks(load_tasks(folder / "data"), 0))
    assert texts == 48
    assert sum(reads) == 4 * (24 + 24 + 4 * texts)
    whole, cut, _, binary, half, shallow, short = report.outcomes
    assert whole.score == pytest.approx((whole.scores["STS"] + whole.scores["Retrieval"]) / 2)
    assert (cut.scores["dimensions"], cut.scores["bytes per vector"], binary.scores["bytes per vector"]) == (16, 64, 4)
    model = grit_model("llama")
    layers = model.lm.get_decoder().layers
    of_layers = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    assert whole.scores["parameters"] == sum(p.numel() for p in model.parameters())
    assert shallow.scores["parameters"] == whole.scores["parameters"] - sum(of_layers[1:])
    assert (whole.scores["layers"], shallow.scores["layers"], short.scores["layers"]) == (3, 1, 3)
    assert "layers" not in whole.settings["variant"]
    assert (whole.scores["max tokens"], short.scores["max tokens"]) == (512, 56)
    assert whole.scores["texts/s"] > 0
    assert half.scores["STS"] != whole.scores["STS"] != shallow.scores["STS"]
    reads.clear()
    again = run(settings(folder), OutcomeFolder(folder / "out"))
    assert not reads
    assert [one.scores for one in again.outcomes] == [one.scores for one in report.outcomes]


def test_fewer_layers_are_the_models_own_and_figures_of_them_apart(folder: Path) -> None:
    """The STS score by hand; with all layers the outcome is that of ``gritkit eval mteb``."""
    outcomes = OutcomeFolder(folder / "out")
    report = run(settings(folder, layers=(2,), types=("STS",)), outcomes)
    (shallow,) = report.of("tiny", "layers")[1:]
    model = GritModel.from_pretrained(folder / "model")
    sides = (("runs", WORDS), ("sleeps", WORDS[::-1]))
    first, second = (
        model.embed(
            [f"the {one} {verb}" for one in names],
            role="query",
            instruction="Retrieve semantically similar text.",
            layers=2,
        )
        for verb, names in sides
    )
    grades = [i % 5 for i, _ in pairs()]
    assert shallow.score == pytest.approx(spearman((first * second).sum(1), grades), abs=1e-6)
    found = {one.model: one.settings for one in outcomes.all() if one.kind in ("mteb", "part")}
    assert found["tiny, 2 layers"]["layers"] == 2
    assert "layers" not in found["tiny"]


def test_the_rate_counts_what_the_model_reads() -> None:
    model = grit_model("llama", prompt_format="grit")
    texts = ["the beaver builds", "an otter swims all day long"]
    tokens = sum(len(model.tokens.to_embed([text], "passage", None, 512, truncate=True)[0]) for text in texts)
    found = rate(model, texts)
    assert found.tokens / found.texts == pytest.approx(tokens / 2)
    cut = rate(model, texts, max_length=12)
    assert cut.tokens / cut.texts == pytest.approx(12)


def test_a_dimension_that_a_model_does_not_have(folder: Path) -> None:
    with pytest.raises(InputError, match="dimension 33 must be between 1 and 32"):
        run(settings(folder, dims=(33,)), OutcomeFolder(folder / "out"))


def test_the_command_writes_tables_a_section_and_a_plot(folder: Path) -> None:
    words = [
        "efficiency", "-m", f"tiny={folder / 'model'}", "-m", f"twin={folder / 'model'}",
        "--data", str(folder / "data"), "--types", "STS",
        "--output", str(folder / "out"), "--results", str(folder / "R.md"),
    ]  # fmt: skip
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert "| tiny | binary vectors |" in done.output
    section = (folder / "R.md").read_text(encoding="utf-8")
    assert "`gritkit eval efficiency --model tiny=model --model twin=model --data data --types STS`" in section
    assert (folder / "plots/eval-efficiency.png").read_bytes()[1:4] == b"PNG"
    with pytest.raises(InputError, match="give --data"):
        CliRunner().invoke(app, words[:3], env={"GRITKIT_SHARED": ""}, catch_exceptions=False)
