"""Adapters side by side on one model: each answers as the model that it would be alone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from gritkit.errors import CheckpointError
from gritkit.generation.decoder import Request
from gritkit.generation.params import SamplingParams
from gritkit.model import GritModel
from gritkit_serve.engine import Engine
from tests.models import TEXTS, grit_model, language_model

WRITTEN = ("q_proj", "v_proj", "down_proj")


def adapter(folder: Path, seed: int, targets: tuple[str, ...] = WRITTEN) -> Path:
    """Random ones that change the model a lot."""
    torch.manual_seed(seed)
    model = get_peft_model(language_model("llama"), LoraConfig(r=4, target_modules=list(targets)))
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(str(folder))
    return folder


def alone(folder: Path | None) -> GritModel:
    model = grit_model("llama")
    if folder is None:
        return model
    from peft import PeftModel

    merged: Any = PeftModel.from_pretrained(language_model("llama"), str(folder)).merge_and_unload()
    return GritModel.from_parts(merged, model.tokenizer, model.embedding_config)


def test_each_answers_as_it_would_merged(tmp_path: Path) -> None:
    """Whatever their names: PEFT makes modules of the names that it gets, which take neither of these."""
    folders: dict[str | None, Path | None] = {None: None}
    folders |= {name: adapter(tmp_path / name, seed) for seed, name in enumerate(("v1.0", "keys"))}
    model = grit_model("llama")
    before = model.fingerprint
    engine = Engine(model, adapters={str(name): f for name, f in folders.items() if f is not None})
    assert engine.adapters == ("v1.0", "keys")
    engine.start()

    async def all_at_once() -> dict[str | None, Any]:
        async def of(name: str | None) -> Any:
            prompts = [Request(model.tokens.raw_prompt(text), SamplingParams(max_new_tokens=8)) for text in TEXTS]
            sequences = model.tokens.to_embed(TEXTS, "passage", None, 256, truncate=False)
            return await asyncio.gather(
                engine.embed(sequences, adapter=name),
                engine.call(lambda: model.score(TEXTS[0], list(TEXTS[1:])), adapter=name),
                *(engine.generate(prompt, adapter=name).result() for prompt in prompts),
            )

        return dict(zip(folders, await asyncio.gather(*map(of, folders)), strict=True))

    try:
        found = asyncio.run(asyncio.wait_for(all_at_once(), 60))
    finally:
        engine.stop(drain_s=1.0)
    vectors = []
    for name, folder in folders.items():
        reference = alone(folder)
        got, scores, *completions = found[name]
        np.testing.assert_allclose(got, reference.embed(TEXTS), atol=1e-5)
        assert scores == pytest.approx(reference.score(TEXTS[0], list(TEXTS[1:])), rel=1e-3)
        texts = [one.text for one in completions]
        assert texts == [one.text for one in reference.complete_batch(list(TEXTS), max_new_tokens=8)]
        vectors.append(got)
    assert np.abs(vectors[0] - vectors[1]).max() > 0.1
    assert np.abs(vectors[1] - vectors[2]).max() > 0.1
    assert model.fingerprint == before


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="it has no"):
        Engine(grit_model("llama"), adapters={"x": tmp_path})
    wrong = adapter(tmp_path / "wrong", 0)
    with pytest.raises(CheckpointError, match="does not fit"):
        Engine(grit_model("gpt2"), adapters={"x": wrong})
    head = adapter(tmp_path / "head", 0, ("lm_head",))
    with pytest.raises(CheckpointError, match="output layer"):
        Engine(grit_model("llama"), adapters={"x": head})
