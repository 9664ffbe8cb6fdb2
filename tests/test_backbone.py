from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    GptOssConfig,
    Llama4TextConfig,
    PreTrainedConfig,
    StableLmConfig,
)

from gritkit import attention
from gritkit.backbone import Backbone, probe
from gritkit.errors import UnsupportedModelError
from gritkit.model import GritModel
from gritkit.plan import Plan, Segment, WindowRule
from tests.models import (
    ARCHITECTURES,
    MOVABLE,
    VOCABULARY,
    WINDOW,
    WINDOWED,
    config_of,
    grit_model,
    language_model,
    shared_model,
    tokenizer,
)

SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}

PLAIN_ROPE = {"rope_type": "default", "rope_theta": 1e4}


def backbone_of(name: str, **changes: Any) -> Backbone:
    return Backbone(language_model(name, attention=attention.NAME, **changes))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_probes_pass(name: str) -> None:
    report = shared_model(name).probe
    assert report.causal_error < 1e-5
    assert report.leak < 1e-6
    assert report.reaction > 1e-3
    assert (report.rope is not None) == (name in MOVABLE)
    assert (report.movable_because == "") == (name in MOVABLE)


def test_learned_positions_are_named_as_the_reason() -> None:
    model = shared_model("gpt2")
    assert "no rotary positions" in model.probe.movable_because
    with pytest.raises(UnsupportedModelError, match=r"GPT2LMHeadModel works without document caches only: .*rotary"):
        _ = model.rope
    with pytest.raises(UnsupportedModelError, match="GPT2LMHeadModel"):
        model.read("a document")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (StableLmConfig(**SIZE), "StableLmForCausalLM: the attention plan reached 0 of 2 layers"),
        (FalconConfig(**{k: v for k, v in SIZE.items() if k != "intermediate_size"}), "FalconForCausalLM: .* 0 of 2"),
        (Gemma2Config(**SIZE, head_dim=16), "Gemma2Attention .*'softcap'"),
        (
            GptOssConfig(**SIZE, head_dim=16, num_local_experts=4, rope_parameters=PLAIN_ROPE),
            "GptOssAttention .*'s_aux'",
        ),
        (BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4), "BloomForCausalLM: .* fails"),
        (
            Llama4TextConfig(**SIZE, head_dim=16, num_local_experts=2, intermediate_size_mlp=48),
            "Llama4ForCausalLM",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, PreTrainedConfig) else "",
)  # fmt: skip
def test_architectures_that_do_not_honour_a_plan_are_refused_by_name(config: PreTrainedConfig, message: str) -> None:
    lm = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UnsupportedModelError, match=message) as raised:
        GritModel.from_parts(lm, tokenizer())
    assert "\n" not in str(raised.value)


def test_kinds_of_layers_that_plans_do_not_know_are_refused() -> None:
    """Chunked layers look like full ones until the text is longer than a chunk."""
    backbone = backbone_of("gemma3")
    backbone.layer_types = ["chunked_attention", "full_attention", "full_attention"]
    with pytest.raises(UnsupportedModelError, match="Gemma3ForCausalLM: layer 0 is of the kind 'chunked_attention'"):
        probe(backbone, "exclusive")


@pytest.mark.parametrize("name", WINDOWED)
@pytest.mark.parametrize("window", [WINDOW, 4096])
def test_a_layer_that_loses_its_window_is_caught(name: str, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that is wider than any text of the probe."""
    probe(backbone_of(name, sliding_window=window), "exclusive")
    backbone = backbone_of(name, sliding_window=window)
    for module in backbone.base.modules():
        if hasattr(module, "layer_idx") and getattr(module, "sliding_window", None):
            module.sliding_window = None  # Gemma3 reads it here, Mistral in its config
    if name == "mistral_window":
        original = attention.attend

        def forgetful(*args: Any, sliding_window: int | None = None, **rest: Any) -> Any:
            return original(*args, **rest)

        monkeypatch.setitem(attention.AttentionInterface._global_mapping, attention.NAME, forgetful)
    with pytest.raises(UnsupportedModelError, match="window of None and its config states"):
        probe(backbone, "exclusive")


@pytest.mark.parametrize("window", [WINDOW, 4096])
@pytest.mark.parametrize("rule", ["exclusive", "inclusive", "full"])
def test_a_kernel_that_looks_past_its_window_is_caught(
    window: int, rule: WindowRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = backbone_of("mistral_window", sliding_window=window)
    probe(backbone, rule)
    original = Plan.reach

    def too_far(self: Plan, segment: Segment, sliding_window: int | None) -> tuple[int | None, int | None]:
        back, ahead = original(self, segment, sliding_window)
        return (None if back is None else back + 1), ahead if segment.causal or ahead is None else ahead + 1

    monkeypatch.setattr(Plan, "reach", too_far)
    with pytest.raises(UnsupportedModelError, match=r"MistralForCausalLM: (tokens see|a causal plan differs)"):
        probe(backbone, rule)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_kernel_that_leaks_between_texts_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = backbone_of(name)
    original = attention._attend_segments

    def joined(plan: Plan, *args: Any) -> Any:
        whole = Plan.of([plan.length], causal=plan.segments[0].causal, window_rule=plan.window_rule)
        return original(whole, *args)

    monkeypatch.setattr(attention, "_attend_segments", joined)
    with pytest.raises(UnsupportedModelError, match="tokens see what the plan hides"):
        probe(backbone, "exclusive")


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral_window"])
def test_a_kernel_that_is_always_causal_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = backbone_of(name)
    original = attention._attend_segments

    def causal(plan: Plan, *args: Any) -> Any:
        return original(Plan.of([s.length for s in plan.segments], causal=True, window_cap=plan.window_cap), *args)

    monkeypatch.setattr(attention, "_attend_segments", causal)
    with pytest.raises(UnsupportedModelError, match="do not see what bidirectional attention shows"):
        probe(backbone, "exclusive")


def test_a_config_that_another_object_changed_is_caught() -> None:
    """``from_config`` writes the attention into the config that it is given, which a model may still be using."""
    lm = language_model("llama")
    model = GritModel.from_parts(lm, tokenizer())
    model.embed("before")
    AutoModelForCausalLM.from_config(lm.config, attn_implementation="sdpa")
    for call in (lambda: model.embed("after"), lambda: model.complete("after"), lambda: model.score("after", ["it"])):
        with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM: the attention plan reached 0 of 3 layers"):
            call()


def test_a_fresh_model_in_training_mode_is_probed_and_embeds_without_dropout() -> None:
    lm = language_model("gpt2").train()
    assert lm.config.attn_pdrop > 0
    model = GritModel.from_parts(lm, tokenizer())
    assert (model.embed("the same text") == model.embed("the same text")).all()


def test_a_context_shorter_than_the_probe() -> None:
    config = config_of("gpt2", n_positions=16)
    model = GritModel.from_parts(AutoModelForCausalLM.from_config(config), tokenizer())
    assert model.context_length == 16
    assert model.embed("short").shape == (32,)


def long_rope() -> Any:
    half = config_of("phi3").hidden_size // config_of("phi3").num_attention_heads // 2
    factors = {"short_factor": [1.0] * half, "long_factor": [4.0] * half}
    rotary = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 48, **factors}
    return config_of("phi3", rope_parameters=rotary, original_max_position_embeddings=48)


def test_longrope_ends_where_its_frequencies_change() -> None:
    """Beyond that, a short text's vector would depend on whether a long one is packed beside it."""
    lm = AutoModelForCausalLM.from_config(long_rope(), attn_implementation=attention.NAME).eval()
    model = GritModel.from_parts(lm, tokenizer())
    assert model.context_length == 48
    assert "frequencies depend on the length" in model.probe.movable_because
    short, long = "a short text", "ab " * 10
    alone = model.embed([short])[0]
    torch.testing.assert_close(torch.from_numpy(model.embed([long, short])[1]), torch.from_numpy(alone))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_plain_use_of_the_wrapped_model_still_works(name: str) -> None:
    """transformers' own generate() on the object that gritkit holds equals the untouched model's."""
    model, plain = shared_model(name), language_model(name)
    ids = torch.tensor([model.tokens.raw_prompt("the quick")])
    ours, theirs = (
        lm.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        for lm in (model.lm, plain)
    )
    assert ours.tolist() == theirs.tolist()


def test_wanted_logits_are_those_of_the_whole_row() -> None:
    model = shared_model("qwen3")
    ids = torch.randint(3, VOCABULARY, (9,), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(9)
    with torch.no_grad():
        every, some = (
            model._backbone.logits(ids, positions, Plan.of([9], causal=True), keep)
            for keep in (torch.arange(9), torch.tensor([8, 0, 3]))
        )
    torch.testing.assert_close(some, every[[8, 0, 3]])


def test_sliding_window_of_a_config_that_does_not_use_it() -> None:
    assert backbone_of("qwen2").sliding_window is None
    assert backbone_of("mistral").sliding_window is None
    assert backbone_of("mistral_window").sliding_window == WINDOW
    assert backbone_of("gemma3").sliding_window == WINDOW


def test_read_needs_no_second_pass() -> None:
    model = grit_model("llama")
    passes = []
    model.lm.get_decoder().register_forward_hook(lambda *_: passes.append(1))
    model.read(["one", "two", "three"])
    assert len(passes) == 1
