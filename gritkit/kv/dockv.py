"""The key-values of one document, as the embedding pass computed them: trimmed to its tokens, keys without position.

This module knows nothing about files, models or prompts.

Shapes: n tokens, G key-value heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DocKV:
    """What a later answer needs in order to have read this document."""

    ids: tuple[int, ...]
    """The n token ids that were read, beginning and format included."""
    num_bos: int
    """How many leading ids are the tokenizer's own beginning; dropped when the document follows another."""
    keys: tuple[Tensor, ...]
    """Per layer [G, n, D], before rotary embedding."""
    values: tuple[Tensor, ...]
    """Per layer [G, n, D]."""

    def __post_init__(self) -> None:
        if len(self.keys) != len(self.values) or not self.keys:
            raise ValueError(
                f"a DocKV needs keys and values of every layer, got {len(self.keys)} and {len(self.values)}"
            )
        for tensor in (*self.keys, *self.values):
            if tensor.dim() != 3 or tensor.shape[1] != len(self.ids):
                raise ValueError(f"key-values of {tuple(tensor.shape)} do not fit {len(self.ids)} tokens")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_bytes(self) -> int:
        """Bytes of the key-values in memory."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.keys, *self.values))

    def after_first(self) -> DocKV:
        """The document as it follows another: without its own beginning-of-text tokens."""
        if not self.num_bos:
            return self
        n = self.num_bos
        keys, values = (tuple(x[:, n:] for x in tensors) for tensors in (self.keys, self.values))
        return DocKV(self.ids[n:], 0, keys, values)

    def to(self, device: torch.device) -> DocKV:
        """On another device; itself when it is there already."""
        if self.keys[0].device == device:
            return self
        keys, values = (tuple(x.to(device) for x in tensors) for tensors in (self.keys, self.values))
        return DocKV(self.ids, self.num_bos, keys, values)
