from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gritkit.cli.info import describe, kv_bytes_per_token
from gritkit.model import GritModel
from tests.cli.conftest import Result
from tests.models import ARCHITECTURES, MOVABLE, WINDOWED, shared_model

Run = Callable[..., Result]


def test_json_says_what_the_model_says(run: Run, model_folder: Path) -> None:
    facts = json.loads(run("info", "--format", "json").out)
    model = GritModel.from_pretrained(model_folder)
    assert facts.pop("model") == str(model_folder)
    assert facts == json.loads(json.dumps(describe(model)))
    assert facts["architecture"] == "MistralForCausalLM"
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    assert (facts["sliding_window"], facts["context_length"], facts["dim"]) == (4, 512, 32)
    assert (facts["pooling"], facts["prompt_format"], facts["generates"]) == ("mean", "grit", True)


def test_the_model_may_be_an_argument(run: Run, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRITKIT_MODEL")
    lines = run("info", model_folder, "--dtype", "bfloat16").out.splitlines()
    assert lines[0].split() == ["model", str(model_folder)]
    assert "dtype bfloat16" in [" ".join(line.split()) for line in lines]
    assert "documents movable yes" in [" ".join(line.split()) for line in lines]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bytes_of_key_values_are_those_measured(name: str) -> None:
    model = shared_model(name)
    facts = describe(model)
    assert facts["documents_movable"] == (name in MOVABLE)
    assert (facts["not_movable_because"] is None) == (name in MOVABLE)
    if name in MOVABLE:
        _, (document,) = model.read(["some words"])
        full = kv_bytes_per_token(model.config.get_text_config(), 4)
        kept = sum(keys.shape[1] for keys in document.keys) / (len(document) * document.num_layers)
        assert document.num_bytes / len(document) == pytest.approx(full * kept)
        assert (kept < 1) == (name in WINDOWED)  # sliding-window layers keep the last tokens alone
