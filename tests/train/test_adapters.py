from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from gritkit.config import EmbeddingConfig
from gritkit.data import EmbeddingRecord, GenerativeRecord, Lengths, Mixer, PackedBatch, load, pack_batch, share_of
from gritkit.data import tokenise as tokenised
from gritkit.errors import CheckpointError, GritkitError, InputError
from gritkit.losses import InfoNCE, NextToken
from gritkit.model import GritModel
from gritkit.train import Objective, TrainConfig, train, unified_step
from gritkit.train.adapters import add_lora, check_merge, load_adapted, load_adapter_weights, save_adapter, save_merged
from gritkit.train.world import World
from tests.distributed import in_processes
from tests.models import ARCHITECTURES, TEXTS, config_of, gradients, grit_model, language_model, tokenizer

OBJECTIVE = Objective(contrastive=InfoNCE(temperature=0.1), next_token=NextToken())
RECORDS = [
    *(EmbeddingRecord.of(["Find", f"question {i}"], [f"answer number {i}"], [f"wrong {i}"]) for i in range(12)),
    *(GenerativeRecord.of(f"say {i}: {i} it is, as you wished") for i in range(8)),
]


def plain_logits(model: GritModel) -> torch.Tensor:
    ids = torch.tensor([model.tokens.raw_prompt(TEXTS[1])])
    with torch.inference_mode():
        return model.lm(input_ids=ids).logits  # type: ignore[no-any-return]


def batch(model: GritModel) -> PackedBatch:
    data = tokenised(load(RECORDS), model.tokens, Lengths(query=64, passage=64, generative=64))
    mixed = Mixer(data, embedding_batch_size=6, generative_batch_size=4).draw()
    return pack_batch(share_of(mixed, OBJECTIVE.next_token.shares), 256)


def train_a_little(model: GritModel, steps: int = 4, rate: float = 1e-2) -> list[float]:
    """Both losses on one batch; the loss of each step."""
    packed = batch(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    model.train()
    losses = []
    for _ in range(steps):
        losses.append(unified_step(model, packed, OBJECTIVE, torch.Tensor.backward).total.item())
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return losses


def adapted_layers(model: GritModel) -> set[str]:
    return {name.split(".lora_")[0].rpartition(".")[2] for name, _ in model.lm.named_parameters() if ".lora_" in name}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_fresh_adapter_changes_nothing_and_trains_alone(name: str) -> None:
    model = grit_model(name)
    vectors, logits, fingerprint = model.embed(TEXTS), plain_logits(model), model.fingerprint
    frozen = {name: value.clone() for name, value in model.lm.state_dict().items()}
    add_lora(model, r=2, alpha=4, dropout=0.0 if name == "mixtral" else 0.1)
    np.testing.assert_allclose(model.embed(TEXTS), vectors, atol=1e-7)
    torch.testing.assert_close(plain_logits(model), logits, rtol=0, atol=1e-6)
    assert model.fingerprint != fingerprint
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(".lora_" in name for name in trained)
    first, *_, last = train_a_little(model)
    assert last < first
    assert np.abs(model.embed(TEXTS) - vectors).max() > 1e-3
    assert (plain_logits(model) - logits).abs().max() > 1e-3
    kept = {name.replace("base_layer.", ""): value for name, value in model._backbone.base.state_dict().items()}
    for name, value in frozen.items():
        torch.testing.assert_close(kept[name], value, rtol=0, atol=0)


def test_every_linear_layer_but_the_head_and_the_router() -> None:
    for name, expected in (
        ("llama", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("gpt2", {"c_attn", "c_proj", "c_fc"}),
        ("phi3", {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
        # one inside the other: gate_up_proj is the inner layer of what peft puts around the experts
        ("mixtral", {"q_proj", "k_proj", "v_proj", "o_proj", "experts", "base_layer"}),
    ):
        model = grit_model(name)
        add_lora(model, r=2, dropout=0.0)
        assert adapted_layers(model) == expected, name


def test_layers_by_name() -> None:
    model = grit_model("mixtral")
    add_lora(model, r=2, targets=["q_proj"])
    assert adapted_layers(model) == {"q_proj"}
    model = grit_model("mixtral")
    vectors = model.embed(TEXTS)
    add_lora(model, r=2, dropout=0.0, targets=["gate"])
    assert adapted_layers(model) == {"gate"}
    np.testing.assert_allclose(model.embed(TEXTS), vectors, atol=1e-7)


def test_the_same_seed_gives_the_same_adapter_and_leaves_the_random_state_alone() -> None:
    first, second, third = grit_model(), grit_model(), grit_model()
    before = torch.get_rng_state()
    add_lora(first, r=2, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    add_lora(second, r=2, seed=1)
    add_lora(third, r=2, seed=2)
    weights = [{n: p for n, p in m.named_parameters() if "lora_A" in n} for m in (first, second, third)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not any(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_adapters_of_16_bit_models_are_fp32_where_asked() -> None:
    for fp32, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        model = grit_model("qwen3", dtype=torch.bfloat16)
        add_lora(model, r=2, fp32=fp32)
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {dtype}
        assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
        assert model.dtype == torch.bfloat16


def test_dropout_is_that_of_training_alone() -> None:
    """peft leaves its fresh layers in training mode."""
    model = grit_model()
    add_lora(model, r=2, dropout=0.5)
    train_a_little(model, steps=1)
    np.testing.assert_array_equal(model.embed(TEXTS), model.embed(TEXTS))
    fresh = grit_model()
    add_lora(fresh, r=2, dropout=0.5)
    assert not any(module.training for module in fresh.lm.modules())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"targets": ["q_prog"]}, "no layer is called 'q_prog'; the layers are .*q_proj"),
        ({"targets": ["lm_head"]}, "no layer is called 'lm_head'.*output head cannot be adapted"),
        ({"targets": []}, "no layers"),
        ({"r": 0}, "r=0 must be at least 1"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"alpha": 0}, "alpha=0 above 0"),
    ],
)
def test_what_cannot_be_adapted_is_refused(given: dict[str, Any], message: str) -> None:
    model = grit_model()
    with pytest.raises(InputError, match=message):
        add_lora(model, **given)
    assert not hasattr(model.lm, "peft_config")


def test_what_else_is_refused(tmp_path: Path) -> None:
    model = grit_model()
    with pytest.raises(InputError, match="no adapter to save"):
        save_adapter(model, tmp_path / "adapter")
    with pytest.raises(InputError, match="no adapter to load weights into"):
        load_adapter_weights(model, tmp_path)
    add_lora(model, r=2)
    with pytest.raises(InputError, match="has an adapter already"):
        add_lora(model, r=2)
    with pytest.raises(InputError, match="'gate_up_proj', weights of all experts in one"):
        add_lora(grit_model("mixtral"), r=2, dropout=0.1)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="holds no adapter"):
        save_adapter(model, tmp_path / "thesis")
    with pytest.raises(CheckpointError, match=r"not an adapter saved by gritkit: it lacks adapter_config\.json"):
        load_adapted(tmp_path / "thesis")
    save_adapter(model, tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="does not name the model that it adapts: give base"):
        load_adapted(tmp_path / "adapter")


def test_layers_that_peft_passes_by_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """It takes a dense layer's ``down_proj`` beside experts for the experts' own of older transformers."""
    config = Qwen3MoeConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2,
        mlp_only_layers=[0], decoder_sparse_step=1,
    )  # fmt: skip
    model = GritModel.from_parts(AutoModelForCausalLM.from_config(config), tokenizer())
    with caplog.at_level(logging.WARNING, "gritkit"):
        add_lora(model, r=2, dropout=0.0)
    assert adapted_layers(model) == {"q_proj", "k_proj", "v_proj", "o_proj", "experts", "base_layer"}
    assert "3 layers get no adapter (the first: model.layers.0.mlp.gate_proj)" in caplog.text


# -- on disk ---------------------------------------------------------------------------------------------------------


def saved_run(tmp_path: Path, name: str = "llama", dtype: torch.dtype = torch.float32, **lora: Any) -> GritModel:
    """A trained adapter in ``adapter`` on the model in ``base``."""
    grit_model(name, dtype=dtype).save_pretrained(tmp_path / "base")
    model = GritModel.from_pretrained(tmp_path / "base", device="cpu", prompt_format="grit", pooling="weighted_mean")
    add_lora(model, **{"r": 4, "alpha": 8, "dropout": 0.0, **lora})
    train_a_little(model)
    save_adapter(model, tmp_path / "adapter")
    return model


def test_a_folder_that_stands_alone_with_its_base(tmp_path: Path) -> None:
    model = saved_run(tmp_path)
    assert {file.name for file in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "gritkit_config.json", "tokenizer.json",
        "tokenizer_config.json", "chat_template.jinja",
    }  # fmt: skip
    loaded = load_adapted(tmp_path / "adapter", device="cpu")
    assert loaded.embedding_config == model.embedding_config
    assert loaded.embedding_config.prompt_format == "grit"
    np.testing.assert_array_equal(loaded.embed(TEXTS), model.embed(TEXTS))
    np.testing.assert_array_equal(
        GritModel.from_pretrained(
            tmp_path / "base", adapter=tmp_path / "adapter", device="cpu", prompt_format="grit", pooling="weighted_mean"
        ).embed(TEXTS),
        model.embed(TEXTS),
    )
    save_adapter(loaded, tmp_path / "adapter")  # in place of the old one
    np.testing.assert_array_equal(load_adapted(tmp_path / "adapter", device="cpu").embed(TEXTS), model.embed(TEXTS))


def test_training_goes_on_from_saved_weights(tmp_path: Path) -> None:
    model = saved_run(tmp_path, "mistral")
    other = GritModel.from_pretrained(tmp_path / "base", device="cpu", prompt_format="grit", pooling="weighted_mean")
    add_lora(other, r=4, alpha=8, dropout=0.0, seed=5)
    load_adapter_weights(other, tmp_path / "adapter")
    np.testing.assert_array_equal(other.embed(TEXTS), model.embed(TEXTS))
    assert train_a_little(other, 2) == train_a_little(model, 2)
    narrow = grit_model("mistral")
    add_lora(narrow, r=4, targets=["q_proj"])
    with pytest.raises(CheckpointError, match="of other layers than this model's"):
        load_adapter_weights(narrow, tmp_path / "adapter")
    thin = grit_model("mistral")
    add_lora(thin, r=2)
    with pytest.raises(CheckpointError, match="does not fit this model's"):
        load_adapter_weights(thin, tmp_path / "adapter")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_adapter_and_merged_agree(name: str, tmp_path: Path) -> None:
    """Invariant 9, on disk, for every architecture."""
    model = saved_run(tmp_path, name)
    assert check_merge(model, tmp_path / "adapter", TEXTS) < 1e-4
    assert hasattr(model.lm, "peft_config")


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-6), (torch.bfloat16, 5e-2)])
def test_the_tolerance_is_that_of_the_precision(dtype: torch.dtype, most: float, tmp_path: Path) -> None:
    model = saved_run(tmp_path, dtype=dtype)
    difference = check_merge(model, tmp_path / "adapter", TEXTS)
    assert difference < most
    if dtype == torch.bfloat16:
        with pytest.raises(GritkitError, match=r"apart \(relative\), 1e-06 allowed"):
            check_merge(model, tmp_path / "adapter", TEXTS, tolerance=1e-6)


def test_a_wrong_copy_is_found(tmp_path: Path) -> None:
    model = saved_run(tmp_path)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    changed = next(name for name in weights if "lora_B" in name)
    save_file({**weights, changed: weights[changed] * 1.5}, file)
    with pytest.raises(GritkitError, match="the saved adapter on its base gives other vectors than the trained model"):
        check_merge(model, tmp_path / "adapter", TEXTS)


def test_the_adapter_is_that_of_the_formula() -> None:
    """W + alpha / r B A, written into a plain model."""
    model = grit_model("llama")
    add_lora(model, r=2, alpha=6, dropout=0.0)
    train_a_little(model)
    plain = language_model("llama")
    adapted = dict(model.lm.named_parameters())
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            inner = f"base_model.model.{name.removesuffix('.weight')}"
            if f"{inner}.lora_A.default.weight" in adapted:
                low, high = (adapted[f"{inner}.lora_{x}.default.weight"] for x in "BA")
                weight.add_(6 / 2 * low @ high)
    expected = GritModel.from_parts(plain, tokenizer(), EmbeddingConfig())
    np.testing.assert_allclose(model.embed(TEXTS), expected.embed(TEXTS), atol=1e-6)


def test_a_run_of_the_trainer_with_everything_on(tmp_path: Path) -> None:
    """Checkpointing, dropout and GradCache over adapters; the base stays as it is on the disk."""
    grit_model("mistral_window", prompt_format="grit").save_pretrained(tmp_path / "base")
    model = GritModel.from_pretrained(tmp_path / "base", device="cpu")
    add_lora(model, r=4, alpha=8, dropout=0.1)
    config = TrainConfig(
        output_dir=str(tmp_path / "run"), max_steps=6, embedding_batch_size=6, generative_batch_size=4,
        temperature=0.1, learning_rate=1e-2, recompute=True, tokens_per_row=64, use_cpu=True, save_strategy="no",
        plot=False, warmup_steps=0, disable_tqdm=True,
    )  # fmt: skip
    trainer = train(model, RECORDS, config, save=False)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]
    save_adapter(model, tmp_path / "adapter")
    assert check_merge(model, tmp_path / "adapter", TEXTS) < 1e-4
    base = GritModel.from_pretrained(tmp_path / "base", device="cpu")
    with model.lm.disable_adapter():
        np.testing.assert_allclose(model.embed(TEXTS), base.embed(TEXTS), atol=1e-6)


# -- four bits -------------------------------------------------------------------------------------------------------


def gradients_of(model: GritModel) -> torch.Tensor:
    """Of one step, all adapter weights away from zero."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=random))
    model.train()
    unified_step(model, batch(model), OBJECTIVE, torch.Tensor.backward)
    model.eval()
    return gradients(model).double()


def test_a_base_of_four_bits(tmp_path: Path) -> None:
    """Trained on, and merged into, the weights that its bits stand for."""
    pytest.importorskip("bitsandbytes")
    wide = config_of("llama", hidden_size=128, intermediate_size=256, head_dim=32)  # 4-bit blocks are of 64 weights
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lm = AutoModelForCausalLM.from_config(wide)
    GritModel.from_parts(lm, tokenizer()).save_pretrained(tmp_path / "base")

    model = GritModel.from_pretrained(tmp_path / "base", device="cpu", quantization="int4", dtype="bfloat16")
    vectors = model.embed(TEXTS)
    add_lora(model, r=4, alpha=8, dropout=0.0)
    np.testing.assert_allclose(model.embed(TEXTS), vectors, atol=1e-2)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert not [p.dtype for p in model.parameters() if not p.requires_grad and p.dtype == torch.float32]
    save_adapter(model, tmp_path / "fresh")

    plain = load_adapted(tmp_path / "fresh", device="cpu", dtype="bfloat16", quantization="int4", dequantize=True)
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    expected = gradients_of(plain)
    found = gradients_of(model)
    assert float((found - expected).norm() / expected.norm()) < 2e-2
    model.activation_checkpointing_enable()
    torch.testing.assert_close(gradients_of(model), found, rtol=1e-2, atol=1e-3 * float(found.abs().max()))
    model.activation_checkpointing_disable()

    first, *_, last = train_a_little(model, 4)
    assert last < 0.95 * first
    save_adapter(model, tmp_path / "adapter")
    assert check_merge(model, tmp_path / "adapter", TEXTS) < 5e-2
    other = load_adapted(tmp_path / "adapter", device="cpu", dtype="bfloat16", quantization="int4")
    np.testing.assert_allclose(other.embed(TEXTS), model.embed(TEXTS), atol=2e-2)


def test_every_process_waits_for_the_merged_model(tmp_path: Path) -> None:
    grit_model("llama", prompt_format="grit").save_pretrained(tmp_path / "base")

    def one() -> list[str]:
        model = GritModel.from_pretrained(tmp_path / "base", device="cpu")
        add_lora(model, r=4)
        if World.here().rank == 0:
            save_adapter(model, tmp_path / "adapter")
        World.here().wait()
        save_merged(model, tmp_path / "adapter", tmp_path / "model", ["a text"])
        return sorted(file.name for file in (tmp_path / "model").glob("*.safetensors"))

    assert in_processes(2, one) == [["model.safetensors"]] * 2
