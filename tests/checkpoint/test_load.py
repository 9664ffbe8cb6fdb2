"""What cannot or must not be loaded: one line each, quickly, and before any code of the checkpoint runs."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from transformers.utils import hub

from gritkit import GritModel
from gritkit.config import FILE_NAME
from gritkit.errors import CheckpointError, GritkitError, InputError, MissingExtraError, UnsupportedModelError
from tests.models import TEXTS, grit_model, language_model, tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    grit_model("llama", prompt_format="grit", pooling="cls").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """An own copy to damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def edit(path: Path, **fields: Any) -> None:
    value = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: field for name, field in value.items() if field is not None}))


def refused(source: Any, said: str, kind: type[GritkitError] = CheckpointError, **options: Any) -> None:
    with pytest.raises(kind, match=said) as caught:
        GritModel.from_pretrained(source, **{"device": "cpu", **options})
    assert "\n" not in str(caught.value)


def drop_weights(folder: Path, keep: Callable[[str], bool]) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if keep(k)}, folder / "model.safetensors", metadata={"format": "pt"})


# -- damaged and absent ----------------------------------------------------------------------------------------------


def test_places_without_a_model(tmp_path: Path, folder: Path) -> None:
    refused(tmp_path / "nowhere", "no model folder at .*nowhere")
    refused(str(tmp_path / "nowhere"), "no model folder at .*nowhere")
    refused("./nowhere", "no model folder at .*nowhere")
    refused(folder / "config.json", "no model folder at")
    refused(tmp_path, "is a folder without config.json: not a model")
    refused("some-owner/some-model", "no folder 'some-owner/some-model' here")  # offline: HF_HUB_OFFLINE is set
    refused("spaces are not allowed", "spaces are not allowed")
    refused("", "not a usable path", InputError)


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time it is asked, it is tried again for 20 s."""
    asked: list[str] = []

    def out_of_reach(name: str, file: str, **_: Any) -> None:
        asked.append(file)
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(hub, "hf_hub_download", out_of_reach)
    refused("some-owner/some-model", "couldn't connect")
    assert asked == ["config.json"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "cannot load|is not"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{}"), "is not UTF-8 text"),
        (lambda f: edit(f / "config.json", model_type="no-such-type"), "cannot load .*no-such-type"),
        (lambda f: edit(f / "config.json", hidden_size="wide"), "cannot load"),
        (lambda f: edit(f / "config.json", hidden_size=64), "cannot load|lacks .* of its weights"),
        (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:999]), "cannot load"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "cannot load"),
        (lambda f: (f / "model.safetensors").unlink(), "has no weights"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "only pickled weights .*safetensors"),
        (
            lambda f: drop_weights(f, lambda k: "layers.1.mlp" not in k),
            r"lacks 3 of its weights \(first: .*layers.1.mlp",
        ),
        (lambda f: (f / "tokenizer.json").unlink(), "cannot load"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "cannot load"),
        (lambda f: edit(f / FILE_NAME, format_version=2), "has format version 2"),
        (lambda f: edit(f / FILE_NAME, sparkle=1), "unknown field 'sparkle'"),
        (lambda f: (f / FILE_NAME).write_text("{"), f"{FILE_NAME} is not JSON"),
    ],
)
def test_damaged_folders(folder: Path, damage: Callable[[Path], Any], said: str) -> None:
    damage(folder)
    refused(folder, said)


def test_an_unknown_prompt_format(folder: Path) -> None:
    edit(folder / FILE_NAME, prompt_format="from-the-future")
    refused(folder, "prompt_format='from-the-future' is unknown", InputError)


def test_options(saved: Path) -> None:
    refused(saved, "dtype='float7' is unknown; use auto", InputError, dtype="float7")
    refused(saved, "dtype='int8' is unknown", InputError, dtype="int8")
    refused(saved, "dtype=32 is unknown", InputError, dtype=32)
    refused(saved, "device='toaster' is not usable here", InputError, device="toaster")
    refused(saved, "device or device_map, not both", InputError, device_map="auto")
    refused(saved, "quantization='int2' is neither", InputError, quantization="int2")
    refused(saved, "pooling='max' is not one of", InputError, pooling="max")
    if not torch.cuda.is_available():
        refused(saved, "device='cuda' is not usable here", InputError, device="cuda")
    if importlib.util.find_spec("bitsandbytes") is None:
        refused(saved, r"'bitsandbytes'.*pip install 'gritkit\[", MissingExtraError, quantization="int8")
    for short, dtype in (("bf16", torch.bfloat16), ("float16", torch.float16), (torch.float64, torch.float64)):
        assert GritModel.from_pretrained(saved, device="cpu", dtype=short).dtype == dtype


# -- code that comes along -------------------------------------------------------------------------------------------

MODULE = """
import pathlib
pathlib.Path({ran!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class OwnConfig(LlamaConfig):
    model_type = {kind!r}
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.mark.parametrize("kind", ["own-kind", "llama"])
@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json"])
def test_code_of_a_checkpoint_never_runs_unasked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, where: str
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(MODULE.format(ran=str(ran), kind=kind))
    if where == "config.json":
        own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
        edit(folder / where, auto_map=own, model_type=kind)
    else:
        edit(folder / where, auto_map={"AutoTokenizer": [None, "own.OwnTokenizer"]}, tokenizer_class="OwnTokenizer")
        if kind == "own-kind":
            edit(folder / "config.json", model_type=kind, auto_map={"AutoConfig": "own.OwnConfig"})
    try:
        GritModel.from_pretrained(folder, device="cpu")
    except CheckpointError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert kind == "llama" or "then pass trust_remote_code=True" in str(error)  # noqa: PT017
    else:
        assert kind == "llama", "code was needed and nobody said so"
    assert not ran.exists()
    if where == "config.json":
        GritModel.from_pretrained(folder, device="cpu", trust_remote_code=True)
        assert ran.exists(), "the test's own code does run when it is asked for"


# -- other dialects --------------------------------------------------------------------------------------------------


def sentence_transformers_folder(folder: Path, pooling: dict[str, Any], prompts: dict[str, str], **config: Any) -> None:
    """Rewrite a saved folder as such checkpoints are published: base model, modules.json, no word of gritkit."""
    (folder / FILE_NAME).unlink()
    drop_weights(folder, lambda key: "lm_head" not in key)
    weights = load_file(folder / "model.safetensors")
    bare = {key.removeprefix("model."): value for key, value in weights.items()}
    save_file(bare, folder / "model.safetensors", metadata={"format": "pt"})
    edit(folder / "config.json", architectures=["LlamaModel"], **config)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    listed = [
        {"idx": i, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **pooling}))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 100}))


def test_a_checkpoint_of_e5_mistral_s_kind(folder: Path) -> None:
    prompts = {"web": "Instruct: Given a query, retrieve\nQuery: "}
    sentence_transformers_folder(folder, {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, prompts)
    model = GritModel.from_pretrained(folder, device="cpu")
    config = model.embedding_config
    assert (config.pooling, config.embedding_attention, config.prompt_format) == ("last", "causal", "instruct-query")
    assert config.max_length == 100
    expected = GritModel.from_parts(language_model("llama"), tokenizer(), config)
    np.testing.assert_allclose(model.embed(TEXTS), expected.embed(TEXTS), atol=1e-6)
    for use in (lambda: model.complete("a"), lambda: model.score("a", ["b"])):
        with pytest.raises(UnsupportedModelError, match="no language-model head: it embeds but cannot"):
            use()


def test_bidirectional_and_weighted(folder: Path) -> None:
    sentence_transformers_folder(folder, {"pooling_mode": "weightedmean"}, {"query": "query: "}, is_causal=False)
    config = GritModel.from_pretrained(folder, device="cpu").embedding_config
    assert (config.pooling, config.embedding_attention) == ("weighted_mean", "bidirectional")
    assert (config.prompt_format, config.embedding_window) == ("e5", "inclusive")


def test_modules_that_are_not_applied(folder: Path) -> None:
    sentence_transformers_folder(folder, {"pooling_mode": "mean"}, {})
    listed = json.loads((folder / "modules.json").read_text())
    listed.append({"idx": 3, "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(listed))
    refused(folder, "module 'Dense', which gritkit does not apply")
    (folder / "modules.json").write_text(json.dumps(listed[:1]))
    refused(folder, "no Pooling module")
    (folder / "modules.json").write_text(json.dumps(listed[:3]))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "max"}))
    refused(folder, "pools by .*max")


def test_grit_s_own_and_plain_folders(folder: Path) -> None:
    (folder / FILE_NAME).unlink()
    plain = GritModel.from_pretrained(folder, device="cpu").embedding_config
    assert (plain.pooling, plain.prompt_format, plain.embedding_attention) == ("mean", "plain", "bidirectional")
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_llama_gritlm.LlamaForCausalLM"})
    model = GritModel.from_pretrained(folder, device="cpu")
    config = model.embedding_config
    assert (config.pooling, config.prompt_format, config.embedding_window) == ("mean", "grit", "full")
    assert model.complete("a", max_new_tokens=2).token_ids
