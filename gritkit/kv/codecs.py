"""How key-values are written down: ``exact``, ``bf16``, ``int8`` (the default) and ``int4``.

A codec turns a document's tensors into plain arrays for a block, and gives them back a layer at a time, so that an
answer decodes each layer right before it is laid. Keys come without position, where their channels keep their meaning
from token to token (Liu et al. 2024, KIVI, arXiv 2402.02750).

    exact   the model's own numbers
    bf16    rounded to bfloat16
    int8    keys and values: 8 bits, one scale for each token and head; code = round(x / scale), scale = max|x| / 127
    int4    4 bits, scale and smallest value for a group: keys one for each channel and 32 tokens, values one for each
            token and head (KIVI's grouping); code = round((x - smallest) / scale), scale = (max - smallest) / 15

This module knows nothing about files, models or positions.

Shapes: m tokens kept by a layer, G key-value heads, D head size, C = ceil(m / 32) groups of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gritkit.errors import InputError, StoreError
from gritkit.kv.dockv import DocKV

CodecName = Literal["exact", "bf16", "int8", "int4"]
DEFAULT_CODEC: CodecName = "int8"
Array = NDArray[Any]
Shape = tuple[int, int, int]
Layout = tuple[torch.dtype, Shape]
"""Of one array, before it becomes numpy's."""

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64)
}
_GROUP = 32
_SMALLEST_SCALE = 2.0**-24  # of float16; what is smaller is zero


class Codec(Protocol):
    """One way of writing a tensor [G, m, D] down. ``keys`` tells the two kinds of tensor apart."""

    def encode(self, tensor: Tensor, *, keys: bool) -> list[Tensor]: ...

    def decode(self, stored: Sequence[Tensor], dtype: torch.dtype, *, keys: bool) -> Tensor: ...

    def layout(self, shape: Shape, dtype: torch.dtype, *, keys: bool) -> list[Layout]:
        """What :meth:`encode` makes of a tensor of this shape and type."""

    num_parts: int
    """Arrays of one tensor."""


class Exact:
    """The tensor as it is."""

    num_parts = 1

    def encode(self, tensor: Tensor, *, keys: bool) -> list[Tensor]:
        return [tensor]

    def decode(self, stored: Sequence[Tensor], dtype: torch.dtype, *, keys: bool) -> Tensor:
        return stored[0]

    def layout(self, shape: Shape, dtype: torch.dtype, *, keys: bool) -> list[Layout]:
        return [(dtype, shape)]


class Bf16:
    """Rounded to bfloat16."""

    num_parts = 1

    def encode(self, tensor: Tensor, *, keys: bool) -> list[Tensor]:
        return [tensor.to(torch.bfloat16)]

    def decode(self, stored: Sequence[Tensor], dtype: torch.dtype, *, keys: bool) -> Tensor:
        return stored[0].to(dtype)

    def layout(self, shape: Shape, dtype: torch.dtype, *, keys: bool) -> list[Layout]:
        return [(torch.bfloat16, shape)]


class Int8:
    """Symmetric, one float16 scale for each token and head."""

    num_parts = 2

    def encode(self, tensor: Tensor, *, keys: bool) -> list[Tensor]:
        wide = tensor.float()
        scale_GM1 = (wide.abs().amax(-1, keepdim=True) / 127).clamp_min(_SMALLEST_SCALE).half()
        codes = (wide / scale_GM1.float()).round().clamp(-127, 127).to(torch.int8)
        return [codes, scale_GM1]

    def decode(self, stored: Sequence[Tensor], dtype: torch.dtype, *, keys: bool) -> Tensor:
        codes, scale_GM1 = stored
        wide = torch.promote_types(dtype, torch.float32)
        out = torch.empty(codes.shape, dtype=wide, device=codes.device)
        return torch.mul(codes, scale_GM1.to(wide), out=out).to(dtype)

    def layout(self, shape: Shape, dtype: torch.dtype, *, keys: bool) -> list[Layout]:
        heads, tokens, _ = shape
        return [(torch.int8, shape), (torch.float16, (heads, tokens, 1))]


class Int4:
    """Asymmetric; a byte holds a channel of the first half of the head and one of the second."""

    num_parts = 3

    def encode(self, tensor: Tensor, *, keys: bool) -> list[Tensor]:
        wide = tensor.float()
        if wide.shape[-1] % 2:
            raise InputError(f"int4 needs an even head size, not {wide.shape[-1]}: use int8")
        low, high = self._range(wide, keys)
        low = low.half()
        scale = ((high - low.float()) / 15).clamp_min(_SMALLEST_SCALE).half()
        spread = (self._spread(x.float(), wide.shape[1], keys) for x in (low, scale))
        base, step = spread
        codes = ((wide - base) / step).round().clamp(0, 15).to(torch.uint8)
        first, second = codes.chunk(2, -1)
        return [first | (second << 4), low, scale]

    def decode(self, stored: Sequence[Tensor], dtype: torch.dtype, *, keys: bool) -> Tensor:
        packed, low, scale = stored
        wide = torch.promote_types(dtype, torch.float32)
        codes = torch.cat([packed & 15, packed >> 4], -1)
        base, step = (self._spread(x.to(wide), packed.shape[1], keys) for x in (low, scale))
        return torch.addcmul(base, codes.to(wide), step).to(dtype)

    def layout(self, shape: Shape, dtype: torch.dtype, *, keys: bool) -> list[Layout]:
        heads, tokens, size = shape
        grouped = (heads, math.ceil(tokens / _GROUP), size) if keys else (heads, tokens, 1)
        return [(torch.uint8, (heads, tokens, size // 2)), *[(torch.float16, grouped)] * 2]

    def _range(self, wide: Tensor, keys: bool) -> tuple[Tensor, Tensor]:
        """Smallest and largest value of each group: keys [G, C, D], values [G, m, 1]."""
        if not keys:
            return wide.amin(-1, keepdim=True), wide.amax(-1, keepdim=True)
        groups = wide.split(_GROUP, 1)
        if not groups[0].shape[1]:
            return wide[:, :0], wide[:, :0]
        low, high = ([getattr(group, kind)(1) for group in groups] for kind in ("amin", "amax"))
        return torch.stack(low, 1), torch.stack(high, 1)

    def _spread(self, grouped: Tensor, length: int, keys: bool) -> Tensor:
        """One value for each token of the group: [G, m, D] for keys; values broadcast as they are."""
        return grouped.repeat_interleave(_GROUP, 1)[:, :length] if keys else grouped


_CODECS: dict[CodecName, Codec] = {"exact": Exact(), "bf16": Bf16(), "int8": Int8(), "int4": Int4()}


def check_codec(name: str) -> CodecName:
    """The name itself. Raises InputError for a codec that there is not."""
    for known in get_args(CodecName):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise InputError(f"codec={name!r} is not one of {', '.join(map(repr, get_args(CodecName)))}")


def encode(document: DocKV, codec: CodecName) -> tuple[Array, ...]:
    """The arrays of a document: every layer's keys, then its values.

    Raises:
        StoreError: for a type without a name, and numbers that are not finite or that the codec has no room for: they
            would come back as answers without sense.
    """
    dtype = str(document.keys[0].dtype).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise StoreError(f"key-values of type {dtype} cannot be stored: known are {', '.join(_DTYPES)}")
    arrays: list[Array] = []
    for layer, sides in enumerate(zip(document.keys, document.values, strict=True)):
        for tensor, keys in zip(sides, (True, False), strict=True):
            parts = _CODECS[codec].encode(tensor.detach().cpu(), keys=keys)
            if not _comes_back(parts, codec, tensor.dtype, keys):
                raise StoreError(
                    f"the key-values of layer {layer} are not finite as {codec}: where codec='exact' refuses them too, "
                    f"the model overflows in {dtype}, so load it in another dtype"
                )
            arrays += [_to_array(part) for part in parts]
    return tuple(arrays)


def _comes_back(parts: Sequence[Tensor], codec: CodecName, dtype: torch.dtype, keys: bool) -> bool:
    """Whether all numbers are finite as stored. Scales and smallest values inherit what is not from their group."""
    stored = [part for part in parts if part.is_floating_point()]
    if dtype == torch.float16 and len(parts) > 1:  # a rounded scale may lead beyond the largest number of this type
        stored.append(_CODECS[codec].decode(parts, dtype, keys=keys))
    return all(bool(torch.stack(torch.aminmax(part)).isfinite().all()) for part in stored if part.numel())


@dataclass(frozen=True, eq=False)
class StoredKV:
    """A document as a codec wrote it down; a layer is decoded when it is asked for.

    A :class:`gritkit.kv.dockv.ReadDocument`.
    """

    ids: tuple[int, ...]
    num_bos: int
    num_prompt: int
    codec: CodecName
    dtype: torch.dtype
    """What layers come in."""
    arrays: tuple[Array, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def num_layers(self) -> int:
        return len(self.arrays) // (2 * _CODECS[self.codec].num_parts)

    @cached_property
    def num_bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    def layer(self, index: int, device: torch.device) -> tuple[Tensor, Tensor]:
        codec = _CODECS[self.codec]
        start = 2 * codec.num_parts * index
        parts = [
            self._tensor(array).to(device, non_blocking=True)
            for array in self.arrays[start : start + 2 * codec.num_parts]
        ]
        keys = codec.decode(parts[: codec.num_parts], self.dtype, keys=True)
        return keys, codec.decode(parts[codec.num_parts :], self.dtype, keys=False)

    def has_layout(self, layers: Sequence[tuple[Shape, Shape]]) -> bool:
        """Whether its arrays are what this codec makes of layers whose keys and values have these shapes."""
        codec = _CODECS[self.codec]
        expected = [
            part
            for shapes in layers
            for shape, keys in zip(shapes, (True, False), strict=True)
            for part in codec.layout(shape, self.dtype, keys=keys)
        ]
        return [(self._tensor(array).dtype, array.shape) for array in self.arrays] == expected

    def decoded(self, device: torch.device) -> DocKV:
        """Every layer at once."""
        layers = [self.layer(index, device) for index in range(self.num_layers)]
        keys, values = (tuple(layer[side] for layer in layers) for side in (0, 1))
        return DocKV(self.ids, self.num_bos, self.num_prompt, keys, values)

    def _tensor(self, array: Array) -> Tensor:
        tensor = torch.from_numpy(array)
        is_bf16 = array.dtype == np.uint16  # numpy has no bfloat16
        return tensor.view(torch.bfloat16) if is_bf16 else tensor


def _to_array(tensor: Tensor) -> Array:
    tensor = tensor.contiguous()
    array: Array = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def dtype_of(name: str) -> torch.dtype:
    """The type of that name. Raises StoreError for one that key-values do not come in."""
    if name not in _DTYPES:
        raise StoreError(f"key-values of type {name!r} cannot be read: known are {', '.join(_DTYPES)}")
    return _DTYPES[name]
