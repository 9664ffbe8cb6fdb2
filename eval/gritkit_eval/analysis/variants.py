"""One model in cheaper forms: fewer dimensions, coded vectors, a smaller type, fewer layers or tokens; their encoders.

Vectors are computed once for each way of reading (type, layers, tokens) and cut and coded from there: the first
dimensions of a unit vector, normalised, are what ``GritModel.embed(dim=...)`` gives.

This module knows nothing about tasks' data, time or tables.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gritkit.errors import InputError
from gritkit.search import dequantize_binary, dequantize_int8, quantize_binary, quantize_int8
from gritkit_eval.analysis.models import Vectors
from gritkit_eval.mteb.encoder import Encoder, GritEncoder

Coding = Literal["float32", "int8", "binary"]
Curve = Literal["", "dimension", "coding", "precision", "layers", "max tokens"]
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One form of a model."""

    curve: Curve = ""
    """What it departs in from the whole model; "" is the whole."""
    dtype: str = "float32"
    """Of the weights and the computation."""
    layers: int | None = None
    """The first so many run, then the final norm; None: all."""
    max_length: int | None = None
    """Tokens that texts are cut to; None: the checkpoint's own."""
    dim: int | None = None
    coding: Coding = "float32"
    """Of the stored vectors, on both sides of a comparison."""

    @property
    def name(self) -> str:
        """What is changed, for people."""
        changed = {
            "": "whole", "dimension": f"{self.dim} dimensions", "coding": f"{self.coding} vectors",
            "precision": f"{self.dtype} model", "layers": f"{self.layers} layer{'s' * (self.layers != 1)}",
            "max tokens": f"{self.max_length} tokens",
        }  # fmt: skip
        return changed[self.curve]

    @property
    def reading(self) -> tuple[str, int | None, int | None]:
        """What vectors are computed anew for: type, layers, tokens."""
        return self.dtype, self.layers, self.max_length

    def num_bytes(self, full_dim: int) -> int:
        """Of one stored vector; int8 keeps a float32 scale."""
        dim = self.dim or full_dim
        return {"float32": 4 * dim, "int8": dim + 4, "binary": -(-dim // 8)}[self.coding]

    def apply(self, vectors: Vectors) -> Vectors:
        """Full unit vectors (or zeros, where a text had no words) as this variant would have stored and read them."""
        if self.dim is None and self.coding == "float32":
            return vectors
        worded = vectors.any(axis=1)
        cut: npt.NDArray[Any] = vectors[worded][:, : self.dim]
        lengths = np.linalg.norm(cut, axis=1, keepdims=True)
        cut = cut / np.where(lengths > 0, lengths, 1)
        if self.coding == "int8":
            cut = dequantize_int8(*quantize_int8(cut))
        elif self.coding == "binary":
            cut = dequantize_binary(quantize_binary(cut), cut.shape[1])
        result = np.zeros((len(vectors), cut.shape[1]), np.float32)
        result[worded] = cut
        return result


def variants_of(
    *, dim: int, matryoshka: Sequence[int], num_layers: int, max_length: int, context_length: int, dims: Sequence[int],
    layers: Sequence[int], max_lengths: Sequence[int], dtypes: Sequence[str],
) -> list[Variant]:  # fmt: skip
    """The whole model first, then each curve. Without ``dims`` those that it was trained for, else halves down to 16;
    without ``layers`` half and a quarter of them.

    Raises:
        InputError: for a dimension, layer or number of tokens beyond the model's, and an unknown type.
    """
    bounds = (("dimension", dims, dim), ("layers", layers, num_layers), ("max tokens", max_lengths, context_length))
    for what, values, most in bounds:
        for value in values:
            if not 1 <= value <= most:
                raise InputError(f"{what} {value} must be between 1 and {most}")
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    halves = [dim >> step for step in range(1, 12) if dim >> step >= 16]
    chosen = sorted(set(dims or matryoshka or halves) - {dim}, reverse=True)
    made = [Variant()]
    made += [Variant(curve="dimension", dim=one) for one in chosen]
    made += [Variant(curve="coding", coding="int8"), Variant(curve="coding", coding="binary")]
    made += [Variant(curve="precision", dtype=one) for one in dict.fromkeys(dtypes) if one != "float32"]
    read = set(layers or (num_layers // 2, num_layers // 4)) - {0, num_layers}
    made += [Variant(curve="layers", layers=one) for one in sorted(read, reverse=True)]
    lengths = sorted(set(max_lengths) - {max_length}, reverse=True)
    return made + [Variant(curve="max tokens", max_length=one) for one in lengths]


class Remembering(GritEncoder):
    """Computes the vectors of the texts of a task once, until told to forget them."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._kept: dict[str, Vectors] = {}

    def vectors(self, texts: Sequence[str], task: Any, *, document: bool) -> Vectors:
        asked = hashlib.sha256(repr((task.name, document, list(texts))).encode("utf-8", "surrogatepass")).hexdigest()
        if asked not in self._kept:
            self._kept[asked] = super().vectors(texts, task, document=document)
        return self._kept[asked]

    def forget(self) -> None:
        self._kept.clear()


class Cheaper(Encoder):
    """A variant of what another encoder gives."""

    def __init__(self, whole: GritEncoder, variant: Variant) -> None:
        self.whole = whole
        self.variant = variant

    def vectors(self, texts: Sequence[str], task: Any, *, document: bool) -> Vectors:
        return self.variant.apply(self.whole.vectors(texts, task, document=document))

    def settings(self, task: Any) -> Mapping[str, Any]:
        """As ``gritkit eval mteb`` would name them, so that figures are shared; what it does not have is added."""
        named = {"vectors": self.variant.coding} if self.variant.coding != "float32" else {}
        dtype = {"dtype": self.variant.dtype} if self.variant.dtype != "float32" else {}
        return {**self.whole.settings(task), "dim": self.variant.dim, **named, **dtype}

    @property
    def mteb_model_meta(self) -> Any:
        return self.whole.mteb_model_meta
