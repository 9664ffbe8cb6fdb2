"""DocKV <-> block: what a block's name stands for, and the check that a block holds what its name promises.

A block is named by everything that its numbers depend on: the model's fingerprint (weights, configs, tokenizer, prompt
format, attention mode and windows), the exact token ids, the codec, the type of the numbers, and a tenant's salt.

This module knows nothing about stores, retrieval or where blocks lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gritkit.embedding import kept_tokens
from gritkit.kv.blocks import Block, key_of
from gritkit.kv.codecs import CodecName, StoredKV, dtype_of, encode
from gritkit.kv.dockv import DocKV
from gritkit.model import GritModel


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
        fields = block.fields
        ids = tuple(fields["ids"])
        if {**fields, "ids": list(ids)} != self._fields(ids, fields["num_bos"], fields["num_prompt"]):
            return None
        stored = StoredKV(
            ids, fields["num_bos"], fields["num_prompt"], self.codec, dtype_of(fields["dtype"]), block.arrays
        )
        kept = [kept_tokens(len(ids), window) for window in self.model.windows]
        return stored if stored.has_shape(kept) else None

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
