"""A saved folder: the same model again, for gritkit, for plain transformers and for sentence-transformers."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gritkit import GritModel
from gritkit.config import FILE_NAME
from gritkit.errors import CheckpointError, InputError
from tests.models import ARCHITECTURES, TEXTS, WINDOW, grit_model, language_model, tokenizer

LONG = [*TEXTS, " ".join(TEXTS)]
"""The last is far longer than the window of the models that have one."""


def load(folder: Path, **options: Any) -> GritModel:
    return GritModel.from_pretrained(folder, device="cpu", **options)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_saved_and_loaded_is_the_same(tmp_path: Path, name: str) -> None:
    """Invariant 9: vectors, logits, settings; and plain transformers generates from the folder."""
    model = grit_model(name, prompt_format="grit", pooling="weighted_mean", max_length=200)
    model.save_pretrained(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.embedding_config == model.embedding_config
    assert again.fingerprint == model.fingerprint
    np.testing.assert_array_equal(again.embed(LONG), model.embed(LONG))
    done = model.complete("the quick", max_new_tokens=6)
    assert again.complete("the quick", max_new_tokens=6) == done
    assert "gritkit" not in (tmp_path / "model" / "config.json").read_text()
    assert not (tmp_path / "model" / "modules.json").exists(), "sentence-transformers means something else by it"
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert plain.config._attn_implementation != "gritkit"
    ids = AutoTokenizer.from_pretrained(tmp_path / "model")("the quick", return_tensors="pt").input_ids
    theirs = plain.generate(ids, do_sample=False, max_new_tokens=6)[0, ids.shape[1] :].tolist()
    assert list(done.token_ids) == theirs


@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_heads(tmp_path: Path, tied: bool) -> None:
    lm = language_model("llama")
    if tied:
        lm.config.tie_word_embeddings = True
        lm.tie_weights()
    model = GritModel.from_parts(lm, tokenizer())
    model.save_pretrained(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.writes
    assert again.complete("the", max_new_tokens=6) == model.complete("the", max_new_tokens=6)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize(
    ("name", "attention", "window"),
    [
        ("llama", "bidirectional", "exclusive"),
        ("llama", "causal", "exclusive"),
        ("mistral_window", "bidirectional", "exclusive"),
        ("mistral_window", "bidirectional", "inclusive"),
        ("mistral_window", "bidirectional", "full"),
        ("mistral_window", "causal", "exclusive"),
    ],
)
def test_sentence_transformers_gives_the_same_vectors(
    tmp_path: Path, name: str, attention: Any, window: Any, pooling: Any
) -> None:
    from sentence_transformers import SentenceTransformer

    model = grit_model(
        name, prompt_format="grit", pooling=pooling, embedding_attention=attention, embedding_window=window
    )
    model.save_pretrained(tmp_path / "model")
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert len(model.tokens.encode(LONG[-1])) > 5 * WINDOW
    np.testing.assert_allclose(theirs.encode(LONG), model.embed(LONG), atol=1e-6)
    instruction = "<|user|>\nfind it\n<|embed|>\n"
    np.testing.assert_allclose(
        theirs.encode(LONG, prompt=instruction), model.embed(LONG, instruction="find it"), atol=1e-6
    )
    assert "lm_head" not in (tmp_path / "model" / "st" / "model.safetensors.index.json").read_text()


@pytest.mark.parametrize(("form", "pooling"), [("plain", "mean"), ("plain", "last"), ("instruct-query", "last")])
def test_sentence_transformers_without_a_prefix(tmp_path: Path, form: str, pooling: Any) -> None:
    """The beginning is not pooled and the end is read, though no prompt says so; or it is not offered."""
    from sentence_transformers import SentenceTransformer

    model = grit_model("llama", prompt_format=form, pooling=pooling)
    model.save_pretrained(tmp_path / "model")
    if (tmp_path / "model" / "modules.json").exists():
        theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu")
        np.testing.assert_allclose(theirs.encode(LONG), model.embed(LONG), atol=1e-6)


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    model = grit_model("llama", prompt_format="grit")
    before = os.umask(0o027)
    try:
        model.save_pretrained(tmp_path / "model")
    finally:
        os.umask(before)
    for path in [tmp_path / "model", *(tmp_path / "model").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o750 if path.is_dir() else 0o640), path


def test_a_save_that_dies_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = grit_model("llama", prompt_format="grit")
    model.save_pretrained(tmp_path / "model")
    before = {path: path.read_bytes() for path in (tmp_path / "model").rglob("*") if path.is_file()}

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    other = grit_model("llama", prompt_format="plain")
    monkeypatch.setattr(other.tokenizer, "save_pretrained", die)
    for folder in ("model", "fresh"):
        with pytest.raises(KeyboardInterrupt):
            other.save_pretrained(tmp_path / folder)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert {path: path.read_bytes() for path in (tmp_path / "model").rglob("*") if path.is_file()} == before


def test_saving_over_a_model_replaces_it_whole(tmp_path: Path) -> None:
    grit_model("gpt2", prompt_format="grit").save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "st").is_dir()
    model = grit_model("llama", pooling="cls")
    model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model" / "st").exists()
    np.testing.assert_array_equal(load(tmp_path / "model").embed(["a b"]), model.embed(["a b"]))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_is_not_replaced(tmp_path: Path) -> None:
    model = grit_model("llama")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="is not empty and holds no model"):
        model.save_pretrained(tmp_path / "notes")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="is a file, not a folder"):
        model.save_pretrained(tmp_path / "file")
    with pytest.raises(InputError, match="not a usable path"):
        model.save_pretrained("")
    assert (tmp_path / "notes" / "thesis.txt").read_text() == "years of work"
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "thesis").mkdir()
    (tmp_path / "model" / "thesis" / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="holds 'thesis', which is no part of a model"):
        model.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "thesis" / "thesis.txt").exists()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft reads it
def test_an_adapter_equals_itself_merged(tmp_path: Path) -> None:
    """Invariant 9, and that the folder of an adapter is never half of a model."""
    from peft import LoraConfig, get_peft_model

    grit_model("llama", prompt_format="grit").save_pretrained(tmp_path / "base")
    tuned = get_peft_model(language_model("llama"), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter, generator=None) * 0.1)
    tuned.save_pretrained(tmp_path / "adapter")
    base, model = load(tmp_path / "base"), load(tmp_path / "base", adapter=tmp_path / "adapter")
    vectors, done = model.embed(LONG), model.complete("the", max_new_tokens=8)
    assert np.abs(vectors - base.embed(LONG)).max() > 1e-3
    with pytest.raises(InputError, match="merge it first with model"):
        model.save_pretrained(tmp_path / "merged")
    model.merge_adapter()
    np.testing.assert_allclose(model.embed(LONG), vectors, atol=1e-5)
    assert model.complete("the", max_new_tokens=8) == done
    model.save_pretrained(tmp_path / "merged")
    np.testing.assert_array_equal(load(tmp_path / "merged").embed(LONG), model.embed(LONG))
    with pytest.raises(CheckpointError, match=r"needs adapter_config.json and adapter_model.safetensors"):
        load(tmp_path / "base", adapter=tmp_path / "base")
    torch.save({}, tmp_path / "adapter" / "adapter_model.bin")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors"):
        load(tmp_path / "base", adapter=tmp_path / "adapter")
    assert json.loads((tmp_path / "merged" / FILE_NAME).read_text())["prompt_format"] == "grit"
