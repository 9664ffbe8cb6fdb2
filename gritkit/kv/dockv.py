"""The key-values of one document, as the embedding pass computed them: trimmed to its tokens, keys without position.

A sliding-window layer may keep the last tokens alone: what follows the document sees nothing older there.

This module knows nothing about files, codecs, models or prompts.

Shapes: n tokens, m <= n of them kept by a layer, G key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from gritkit.errors import InputError

Join = Literal["no-bos", "text", "whole"]
"""What a document that follows another one leaves out: its beginning of text; that and its prompt format; nothing.

Every start of a block draws attention to itself (an attention sink, Hu et al. 2024, arXiv 2410.15332), wherever it then
stands; which of the three serves a model best is for measurement to say."""


class ReadDocument(Protocol):
    """A document that was read: its tokens, and the key-values of one layer at a time."""

    @property
    def ids(self) -> tuple[int, ...]:
        """The n token ids that were read, beginning and format included."""

    @property
    def num_bos(self) -> int:
        """How many leading ids are the tokenizer's own beginning."""

    @property
    def num_prompt(self) -> int:
        """How many leading ids are beginning and prompt format together; the text's own follow."""

    @property
    def num_layers(self) -> int: ...

    @property
    def num_bytes(self) -> int:
        """Bytes of the key-values as they are held."""

    def layer(self, index: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Keys before rotary embedding and values of a layer on a device, [G, m, D] of the last m tokens."""


@dataclass(frozen=True)
class DocKV:
    """What a later answer needs in order to have read this document. A :class:`ReadDocument`."""

    ids: tuple[int, ...]
    num_bos: int
    num_prompt: int
    keys: tuple[Tensor, ...]
    """Per layer [G, m, D], before rotary embedding."""
    values: tuple[Tensor, ...]
    """Per layer [G, m, D]."""

    def __post_init__(self) -> None:
        if len(self.keys) != len(self.values) or not self.keys:
            raise ValueError(
                f"a DocKV needs keys and values of every layer, got {len(self.keys)} and {len(self.values)}"
            )
        if not 0 <= self.num_bos <= self.num_prompt <= len(self.ids):
            raise ValueError(f"{self.num_bos} and {self.num_prompt} are no beginnings of {len(self.ids)} tokens")
        for key, value in zip(self.keys, self.values, strict=True):
            if key.dim() != 3 or key.shape[:2] != value.shape[:2] or key.shape[1] > len(self.ids):
                raise ValueError(
                    f"key-values of {tuple(key.shape)} and {tuple(value.shape)} do not fit {len(self.ids)} tokens"
                )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_layers(self) -> int:
        return len(self.keys)

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.keys, *self.values))

    def layer(self, index: int, device: torch.device) -> tuple[Tensor, Tensor]:
        return self.keys[index].to(device, non_blocking=True), self.values[index].to(device, non_blocking=True)

    def to(self, device: torch.device) -> DocKV:
        """On another device; itself when it is there already."""
        if self.keys[0].device == device:
            return self
        keys, values = (tuple(x.to(device) for x in tensors) for tensors in (self.keys, self.values))
        return DocKV(self.ids, self.num_bos, self.num_prompt, keys, values)


def check_join(join: str) -> Join:
    """The value itself. Raises InputError for one that is none."""
    for known in get_args(Join):
        if join == known:
            return known  # type: ignore[no-any-return]
    raise InputError(f"join={join!r} is not one of {', '.join(map(repr, get_args(Join)))}")


def left_out(document: ReadDocument, join: Join) -> int:
    """How many leading tokens a document leaves out where it follows another."""
    return {"no-bos": document.num_bos, "text": document.num_prompt, "whole": 0}[join]


def joined_ids(documents: Sequence[ReadDocument], join: Join) -> list[int]:
    """The tokens of documents one after the other, exactly as their key-values are laid."""
    return [
        token
        for index, document in enumerate(documents)
        for token in document.ids[left_out(document, join) if index else 0 :]
    ]
