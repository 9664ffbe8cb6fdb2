"""The padded way to do what gritkit packs: plain transformers, eager attention, explicit masks; nothing of gritkit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel


def seen_by(num_tokens: int, causal: bool, window: int | None, rule: str) -> Tensor:
    """[T, T], True where a query of one text sees a key of it."""
    distance = torch.arange(num_tokens)[:, None] - torch.arange(num_tokens)[None]
    if causal:
        return (distance >= 0) & (distance < (window or num_tokens))
    if window is None or rule == "full":
        return torch.ones_like(distance, dtype=torch.bool)
    return distance.abs() < window if rule == "exclusive" else distance.abs() <= window


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """What eager attention adds to its scores."""
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)


def by_layer_type(model: PreTrainedModel, full: Tensor, sliding: Tensor) -> Tensor | dict[str, Tensor]:
    """The masks in the form that the model takes: one for all layers, or one a kind of layer."""
    if getattr(model.config, "layer_types", None) and "sliding_attention" in model.config.layer_types:
        return {"full_attention": full, "sliding_attention": sliding}
    return sliding if getattr(model.config, "sliding_window", None) else full


def hidden_states(model: PreTrainedModel, texts: Sequence[Sequence[int]], causal: bool, rule: str) -> list[Tensor]:
    """Last hidden states [n, H] of each text, from one batch padded on the right."""
    longest = max(len(ids) for ids in texts)
    ids = torch.ones(len(texts), longest, dtype=torch.long)
    masks = {}
    window = getattr(model.config, "sliding_window", None)
    for kind, width in (("full", None), ("sliding", window)):
        seen = torch.eye(longest, dtype=torch.bool).repeat(len(texts), 1, 1)  # padding sees itself, nobody sees it
        for row, text in enumerate(texts):
            n = len(text)
            ids[row, :n] = torch.tensor(text)
            seen[row, :n] = False
            seen[row, :n, :n] = seen_by(n, causal, width, rule)
        masks[kind] = additive(seen[:, None], model.dtype)
    out = model.get_decoder()(
        input_ids=ids,
        attention_mask=by_layer_type(model, masks["full"], masks["sliding"]),
        position_ids=torch.arange(longest).expand(len(texts), -1),
        use_cache=False,
    ).last_hidden_state
    return [out[row, : len(text)] for row, text in enumerate(texts)]


def pooled(states: Tensor, mask: Sequence[bool], pooling: str) -> Tensor:
    """One unit vector, summed in a loop."""
    states = states.to(torch.promote_types(states.dtype, torch.float32))
    if pooling in ("last", "cls"):
        total = states[-1 if pooling == "last" else 0]
    else:
        total, number = torch.zeros_like(states[0]), 0
        for state, inside in zip(states, mask, strict=True):
            if inside:
                number += 1
                total = total + state * (number if pooling == "weighted_mean" else 1)
    return total / total.norm()
