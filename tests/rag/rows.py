"""Rows and blocks for tests of the knowledge base: everything follows from the arguments."""

from __future__ import annotations

import numpy as np

from gritkit.kv.blocks import Block
from gritkit.rag.manifest import Manifest
from gritkit.rag.store import Row

DIM = 8
MANIFEST = Manifest(fingerprint="model-one", dim=DIM, prompt_format="grit")


def unit(seed: int) -> np.ndarray:
    vector = np.random.default_rng(seed).normal(size=DIM)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def block(name: str, size: int = 12) -> Block:
    return Block({"ids": [1, 2, 3], "name": name}, (np.arange(size, dtype=np.int8), np.full((2, 2), 7, np.uint16)))


def document(
    name: str, count: int = 2, *, version: int = 0, blocks: list[Block] | None = None, fingerprint: str = "model-one"
) -> tuple[list[Row], list[Block]]:
    """A document's rows and a block for each, its own unless they are given."""
    made = blocks or [block(f"{name}/{version}/{number}") for number in range(count)]
    rows = [
        Row(
            document=name,
            number=number,
            count=count,
            text=f"text of {name}, version {version}, chunk {number}",
            metadata="{}",
            tags=('["a", 1]',),
            digest=f"{name}:{version}",
            token_ids=(number, version),
            block_key=made[number].key,
            fingerprint=fingerprint,
            vector=unit(hash((number, version)) % 1000 + len(name)),
        )
        for number in range(count)
    ]
    return rows, made
