"""Tiny random language models of every architecture that gritkit promises, and their tokenizer; no network.

``language_model(name)`` is a plain transformers model under its own attention; ``grit_model(name)`` is a GritModel
around a copy of the same weights. Both are fresh, so a test may change what it gets, and seeded: equal names give equal
weights. ``shared_model(name)`` is made once a run, for tests that only look.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from gritkit.config import EmbeddingConfig
from gritkit.model import GritModel

WINDOW = 4
"""Sliding window of the models that have one."""
CONTEXT = 512

TEXTS = (
    "the quick brown fox jumps over the lazy dog",
    "attention sees what the plan shows it",
    "documents are read once and answered from many times",
    "naïve café, 東京, emoji 🦊 and tabs\tand\nlines",
    "a",
)
"""Short texts for tests; the tokenizer's merges come from them too."""


@functools.cache
def _backend() -> str:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return str(tokenizer.to_str())


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that puts ``<s>`` in front; ``</s>`` ends and pads. A fresh one each time."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_backend()), bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


VOCABULARY = Tokenizer.from_str(_backend()).get_vocab_size()


@functools.cache
def _configs() -> dict[str, PreTrainedConfig]:
    ids = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    common: dict[str, Any] = ids | size | {"num_key_value_heads": 2, "max_position_embeddings": CONTEXT}
    llama3 = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
    return {
        "llama": LlamaConfig(**common),
        "llama3_rope": LlamaConfig(**common, rope_parameters=llama3),
        "llama_yarn": LlamaConfig(**common, rope_parameters=yarn),
        "mistral": MistralConfig(**common, sliding_window=None),
        "mistral_window": MistralConfig(**common, sliding_window=WINDOW),
        "qwen2": Qwen2Config(**common),
        "qwen3": Qwen3Config(**common, head_dim=16),
        "gemma3": Gemma3TextConfig(
            **common,
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=WINDOW,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
        "mixtral": MixtralConfig(**common, num_local_experts=4, num_experts_per_tok=2, sliding_window=None),
        "phi3": Phi3Config(**common),
        "gpt2": GPT2Config(**ids, n_embd=32, n_layer=3, n_head=4, n_positions=CONTEXT),
        "gpt_neox": GPTNeoXConfig(**ids, **size, max_position_embeddings=CONTEXT),
    }


ARCHITECTURES = tuple(_configs())
WINDOWED = ("mistral_window", "gemma3")
"""Those with sliding-window layers; all layers of the first, every other one of the second."""
MOVABLE = tuple(name for name in ARCHITECTURES if name != "gpt2")
"""Those whose documents can be moved after they were read (GPT-2 learns its positions)."""


def config_of(name: str, **changes: Any) -> PreTrainedConfig:
    """An own copy: ``from_config`` writes into the config that it is given."""
    config = copy.deepcopy(_configs()[name])
    for field, value in changes.items():
        setattr(config, field, value)
    return config


@functools.cache
def _weights(name: str) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config_of(name)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(3)  # greedy choices stay away from near-ties
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.1)  # norms and biases that matter
    return model


def language_model(
    name: str, *, dtype: torch.dtype = torch.float32, attention: str = "eager", **changes: Any
) -> PreTrainedModel:
    """A fresh model without gritkit in it; ``changes`` are fields of its config (its weights must still fit)."""
    model = AutoModelForCausalLM.from_config(config_of(name, **changes), dtype=dtype, attn_implementation=attention)
    model.load_state_dict(_weights(name).state_dict())
    return model.to(dtype).eval()


def grit_model(name: str = "llama", *, dtype: torch.dtype = torch.float32, **config: Any) -> GritModel:
    """A fresh GritModel around a copy of the weights; the keywords are those of EmbeddingConfig."""
    return GritModel.from_parts(language_model(name, dtype=dtype), tokenizer(), EmbeddingConfig(**config))


@functools.cache
def shared_model(name: str = "llama") -> GritModel:
    """``grit_model(name)`` with default settings, one for all tests; do not change it."""
    return grit_model(name)


def exact(model: GritModel) -> GritModel:
    """Norms and rotation angles in the model's own float64; transformers takes them in float32, whose rounding hides
    what float64 tests measure."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = lambda x, norm=module: (  # type: ignore[assignment]
                norm.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
            )
        elif hasattr(module, "inv_freq"):
            module.forward = functools.partial(_exact_angles, module)  # type: ignore[assignment]
    return model


def _exact_angles(rotary: Any, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    angles = position_ids[..., None].double() * rotary.inv_freq.double()
    angles = torch.cat([angles, angles], -1)
    return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def gradients(model: torch.nn.Module) -> torch.Tensor:
    """The gradients of all parameters that train, one after the other; they are cleared."""
    found = [
        p.grad if p.grad is not None else torch.zeros_like(p)
        for _, p in sorted(model.named_parameters())
        if p.requires_grad
    ]
    model.zero_grad()
    return torch.cat([(g.full_tensor() if hasattr(g, "full_tensor") else g).flatten() for g in found])
