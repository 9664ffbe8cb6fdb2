"""What of a model trains, what must not, and how large it is.

This module knows nothing about steps, data or the Trainer.
"""

from __future__ import annotations

import logging
from typing import cast

import torch
from torch import nn

from gritkit.errors import InputError
from gritkit.model import GritModel
from gritkit.train.adapters import has_adapter
from gritkit.train.figures import ModelSize

_log = logging.getLogger("gritkit")


def check_trainable(model: GritModel) -> None:
    """Warns where weights are too coarse to train.

    Raises:
        InputError: where nothing trains, or weights of 8 or 4 bits would stand still beside those that do.
    """
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not weights:
        raise InputError("nothing of this model trains: every weight is frozen (requires_grad is False)")
    if getattr(model.config, "quantization_config", None) is not None and not has_adapter(model):
        raise InputError(
            "weights of 8 or 4 bits do not train: put an adapter on the model, gritkit.train.adapters.add_lora"
        )
    if any(torch.finfo(weight.dtype).bits <= 16 for weight in weights):
        _log.warning(
            "training weights of 16 bits: most updates are smaller than their rounding; load the model with "
            "dtype='float32' (bf16=True computes in 16 bits all the same)"
        )


def size_of(model: GritModel) -> ModelSize:
    """What the model's operations are counted by; of a mixture's experts those that a token is sent to."""
    config = model.config.get_text_config()
    head, inputs = (getattr(model.lm, f"get_{side}_embeddings")() for side in ("output", "input"))
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None) or 1
    idle = 1 - getattr(config, "num_experts_per_tok", 1) / experts if experts > 1 else 0.0
    weights = {
        name: p
        for name, p in model.named_parameters()
        if p is not inputs.weight and (head is None or p is not head.weight)
    }
    working = {name: p.numel() * (1 - idle * ("experts" in name.split("."))) for name, p in weights.items()}
    heads = config.num_attention_heads
    return ModelSize(
        parameters=int(sum(working.values())),
        head=inputs.weight.numel() if head is None else head.weight.numel(),
        frozen=int(sum(working[name] for name, p in weights.items() if not p.requires_grad)),
        frozen_head=0 if head is None or head.weight.requires_grad else head.weight.numel(),
        causal_texts=model.embedding_config.embedding_attention == "causal",
        attention=heads * (getattr(config, "head_dim", None) or config.hidden_size // heads),
        windows=model.windows,
    )


def freeze_untouched_head(model: GritModel) -> nn.Module | None:
    """Where nothing is generated, no gradient reaches an output layer of its own: it must not wait for one (DDP), nor
    decay. Returns the layer, to be freed after the run."""
    head = model.lm.get_output_embeddings()  # type: ignore[operator]
    inputs = model.lm.get_input_embeddings()  # type: ignore[operator]
    if head is None or head.weight is inputs.weight:
        return None
    if not head.weight.requires_grad:
        return None
    head.requires_grad_(False)
    return cast(nn.Module, head)
