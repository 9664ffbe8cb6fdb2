"""Positions of keys: take them off, put them on, by the model's own rotary code.

A document's keys are stored without their position, so that it can stand anywhere in a later prompt. They are never
un-rotated: the pass that reads documents gets ``position_ids = 0``, for which rotary embedding is the identity times
the attention scaling (YaRN's, 1 elsewhere); the attention function then receives plain queries and keys, keeps the
keys, and rotates both at their true positions itself (*deferred rotation*). Stored so in bf16, keys are more exact than
those of a fresh bf16 prefill.

Cosines, sines and the rotation are the model's own; nothing is re-implemented, so every variant (partial, interleaved,
llama3, linear, YaRN, per-layer-type bases) is covered or refused. Whether a loaded model really obeys is measured by
the probe in ``gritkit.backbone``.

This module knows nothing about documents, caches on disk or prompts.

Shapes: T tokens, G key-value heads, D head size, R rotated part of it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gritkit.errors import UnsupportedModelError

# Frequencies of these kinds do not depend on the length of the input, so a key keeps its meaning wherever it moves.
_LENGTH_FREE = frozenset({"default", "linear", "llama3", "yarn"})

Tables = dict[str | None, tuple[Tensor, Tensor]]
"""Layer type -> (cosines, sines) [1, T, R] at some positions."""


class Rope:
    """The rotary embedding of one decoder.

    Raises:
        UnsupportedModelError: when it has none (learned positions, ALiBi) or its frequencies change with length.
    """

    def __init__(self, decoder: nn.Module, num_layers: int, layer_types: list[str] | None) -> None:
        rotary = getattr(decoder, "rotary_emb", None)
        rotate = getattr(sys.modules[type(decoder).__module__], "apply_rotary_pos_emb", None)
        if not isinstance(rotary, nn.Module) or not callable(rotate):
            raise UnsupportedModelError(
                f"{type(decoder).__name__} has no rotary positions: documents cannot be moved after they were read"
            )
        kinds = getattr(rotary, "rope_type", "default")
        kinds = set(kinds.values()) if isinstance(kinds, dict) else {kinds}
        if not kinds <= _LENGTH_FREE:
            raise UnsupportedModelError(
                f"{type(decoder).__name__} has rotary positions of type {sorted(kinds - _LENGTH_FREE)[0]!r}, whose "
                "frequencies depend on the length: documents cannot be moved after they were read"
            )
        self._rotary = rotary
        self._rotate: Callable[..., tuple[Tensor, Tensor]] = rotate
        self._by_type = "layer_type" in inspect.signature(rotary.forward).parameters
        self.layer_types: list[str | None] = list(layer_types) if self._by_type and layer_types else [None] * num_layers
        self.rotates = [True] * num_layers
        """Which layers rotate at all; the probe clears the ones that do not (NoPE layers)."""
        self._scaling: dict[str | None, float] = {}

    def tables(self, positions_T: Tensor) -> Tables:
        """Cosines and sines at the given positions (any integer dtype), for every kind of layer."""
        return {kind: self._table(positions_T[None], kind) for kind in set(self.layer_types)}

    def _table(self, positions_1T: Tensor, kind: str | None) -> tuple[Tensor, Tensor]:
        like = torch.zeros(1, device=positions_1T.device, dtype=torch.float32)
        cos, sin = self._rotary(like, positions_1T, kind) if self._by_type else self._rotary(like, positions_1T)
        return cos, sin

    def rotate(self, keys_1GTD: Tensor, tables: Tables, layer: int) -> Tensor:
        """Plain keys (or queries) -> as the layer would have rotated them; in at least fp32, back in their dtype.

        Of tables for more than T positions the last T are taken.
        """
        if not self.rotates[layer] or not keys_1GTD.shape[2]:
            return keys_1GTD
        cos, sin = (table[:, -keys_1GTD.shape[2] :] for table in tables[self.layer_types[layer]])
        size = cos.shape[-1]
        wide = keys_1GTD[..., :size].to(torch.promote_types(keys_1GTD.dtype, torch.float32))
        # the model's function turns queries and keys: no query heads here
        turned = self._rotate(wide[:, :0], wide, cos, sin)[1].to(keys_1GTD.dtype)
        return turned if size == keys_1GTD.shape[-1] else torch.cat([turned, keys_1GTD[..., size:]], -1)

    def plain(self, keys_1GTD: Tensor, tables: Tables, layer: int) -> Tensor:
        """Keys that the layer rotated at position 0 -> without the attention scaling that came with it."""
        if not self.rotates[layer]:
            return keys_1GTD
        kind = self.layer_types[layer]
        cos = tables[kind][0]
        if kind not in self._scaling:  # read once: on a GPU every look waits for the device
            zero = torch.zeros(1, 1, dtype=torch.long, device=keys_1GTD.device)
            self._scaling[kind] = float(self._table(zero, kind)[0].flatten()[0])
        scaling, size = self._scaling[kind], cos.shape[-1]
        if scaling == 1.0:
            return keys_1GTD
        return torch.cat([keys_1GTD[..., :size] / scaling, keys_1GTD[..., size:]], -1)


class DeferredRotation:
    """A plan's ``key_hook`` for a pass with ``position_ids = 0``: keeps plain keys and values, rotates by itself."""

    def __init__(self, rope: Rope, positions_T: Tensor) -> None:
        self._rope = rope
        self._tables = rope.tables(positions_T)
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        """Layer -> (plain keys, values), each [1, G, T, D]."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        query, key = (self._rope.plain(x, self._tables, layer) for x in (query, key))
        self.kept[layer] = (key, value)
        return self._rope.rotate(query, self._tables, layer), self._rope.rotate(key, self._tables, layer)
