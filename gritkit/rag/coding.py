"""DocKV <-> block: what a block's name stands for, and the check that a block holds what its name promises.

A block is named by everything that its numbers depend on: the model's fingerprint (weights, configs, tokenizer, prompt
format, attention mode and windows), the exact token ids, the codec, the type of the numbers, and a tenant's salt.

This module knows nothing about stores, retrieval or where blocks lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gritkit.embedding import kept_tokens
from gritkit.kv.blocks import Block, key_of
from gritkit.kv.codecs import CodecName, StoredKV, encode
from gritkit.kv.dockv import DocKV
from gritkit.model import GritModel
from gritkit.tokens import sequence


@dataclass(frozen=True)
class BlockCoder:
    """Makes and reads the blocks of one model. ``salt`` separates tenants: with another one nothing is found."""

    model: GritModel
    codec: CodecName
    salt: str = ""

    def block(self, document: DocKV) -> Block:
        """The block of a document that was read."""
        fields = self._fields(document.ids, document.num_bos, document.num_prompt)
        return Block(fields, encode(document, self.codec))

    def key(self, ids: Sequence[int], num_bos: int, num_prompt: int) -> str:
        """The name under which these tokens' key-values are kept."""
        return key_of(self._fields(ids, num_bos, num_prompt))

    def prefix_key(self, ids: Sequence[int]) -> str:
        """The name of these tokens as the beginning of a prompt, which is another reading of them."""
        return key_of({"model": self.model.fingerprint, "salt": self.salt, "prefix": list(ids)})

    def document(self, block: Block) -> StoredKV | None:
        """What a block holds; None where its arrays are not those of this model and these tokens."""
        if not self.owns(block):
            return None
        ids, num_bos, num_prompt = (block.fields[name] for name in ("ids", "num_bos", "num_prompt"))
        stored = StoredKV(tuple(ids), num_bos, num_prompt, self.codec, self.model.dtype, block.arrays)
        shapes = [
            ((heads, kept, key_size), (heads, kept, value_size))
            for (heads, key_size, value_size), window in zip(self._heads, self.model.windows, strict=True)
            for kept in [kept_tokens(len(ids), window)]
        ]
        return stored if stored.has_layout(shapes) else None

    def owns(self, block: Block) -> bool:
        """Whether this coder would have named the block so: the same model, codec and tenant."""
        ids, num_bos, num_prompt = (block.fields.get(name) for name in ("ids", "num_bos", "num_prompt"))
        if not isinstance(ids, list) or type(num_bos) is not int or type(num_prompt) is not int:
            return False
        mine = {**self._fields((), num_bos, num_prompt), "ids": ids}
        return 0 <= num_bos <= num_prompt <= len(ids) and dict(block.fields) == mine

    @cached_property
    def _heads(self) -> list[tuple[int, int, int]]:
        """(key-value heads, size of their keys, of their values) of every layer, as a short text has them."""
        ids = [*self.model.tokens.bos_ids, 0]
        _, (read,) = self.model.read_tokens([sequence(ids, pool=[*[False] * (len(ids) - 1), True])])
        return [(key.shape[0], key.shape[2], value.shape[2]) for key, value in zip(read.keys, read.values, strict=True)]

    def _fields(self, ids: Sequence[int], num_bos: int, num_prompt: int) -> dict[str, Any]:
        return {
            "model": self.model.fingerprint,
            "codec": self.codec,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "salt": self.salt,
            "num_bos": num_bos,
            "num_prompt": num_prompt,
            "ids": list(ids),
        }
