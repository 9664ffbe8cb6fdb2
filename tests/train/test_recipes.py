from __future__ import annotations

import inspect
import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from gritkit.model import GritModel
from tests.models import grit_model

RECIPES = Path(__file__).parents[2] / "recipes"
OPTIONS = {
    "grit": {
        "model": str, "data": str, "output": str, "max_steps": int, "learning_rate": float,
        "embedding_batch_size": int, "generative_batch_size": int, "max_length": int, "bf16": bool,
        "recompute": bool, "save_steps": int, "seed": int, "resume": bool,
    },
}  # fmt: skip


def recipe(name: str) -> Any:
    return runpy.run_path(str(RECIPES / f"{name}.py"))["main"]


@pytest.mark.parametrize("name", OPTIONS)
def test_options_stay_few_and_plain(name: str) -> None:
    """A new option is a decision, so it is made here too."""
    signature = inspect.signature(recipe(name), eval_str=True)
    assert {option.name: option.annotation for option in signature.parameters.values()} == OPTIONS[name]
    assert all(option.kind is option.KEYWORD_ONLY for option in signature.parameters.values())


@pytest.mark.parametrize("name", OPTIONS)
def test_recipes_run_end_to_end(name: str, tmp_path: Path) -> None:
    grit_model("mistral_window", prompt_format="plain").save_pretrained(tmp_path / "start")
    data = tmp_path / "data"
    data.mkdir()
    pairs = [{"query": ["Find", f"q {i}"], "pos": [f"p {i}"], "neg": [f"n {i}"]} for i in range(6)]
    (data / "a.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    (data / "b.jsonl").write_text(json.dumps({"text": ["hello", "there"]}))
    run = tmp_path / "run"
    options = {"embedding_batch_size": 4, "generative_batch_size": 2, "learning_rate": 1e-3, "recompute": True}
    recipe(name)(
        model=str(tmp_path / "start"), data=str(data), output=str(run), max_steps=2, save_steps=2, bf16=False, **options
    )
    assert sorted(file.name for file in run.iterdir()) == ["checkpoint-2", "losses.png", "model"]
    saved = GritModel.from_pretrained(run / "model", device="cpu")
    assert saved.embedding_config.prompt_format == "grit"
    recipe(name)(
        model=str(tmp_path / "start"), data=str(data), output=str(run), max_steps=3, bf16=False, resume=True, **options
    )
