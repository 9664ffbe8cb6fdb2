"""Documents for the crash test: everything about one follows from its id and its version.

This module knows nothing about processes or stores, and imports no torch.
"""

from __future__ import annotations

import hashlib

import numpy as np

from gritkit.kv.blocks import Block
from gritkit.rag.manifest import Manifest
from gritkit.rag.store import Row

DIM = 16
MAX_CHUNKS = 4
MANIFEST = Manifest(fingerprint="crash-test", dim=DIM, prompt_format="plain")
_SHARED_EACH = 5  # every fifth version's first chunk has key-values that others have too


def num_chunks(document: str, version: int) -> int:
    return 1 + _seed(document, version) % MAX_CHUNKS


def word(document: str, version: int, number: int) -> str:
    """In the text of that chunk and no other."""
    return f"q{document}v{version}c{number}"


def version_of(row: Row) -> int:
    """Raises ValueError for a row that is not ours."""
    return int(row.digest.rpartition(":")[2])


def made(document: str, version: int) -> tuple[list[Row], list[Block]]:
    """The rows of a document and the block of each."""
    count = num_chunks(document, version)
    blocks = [_block(document, version, number) for number in range(count)]
    rows = [
        Row(
            document=document,
            number=number,
            count=count,
            text=f"{word(document, version, number)} is chunk {number} of {count}",
            metadata=f'{{"version": {version}}}',
            tags=(f'["version", {version}]',),
            digest=f"{document}:{version}",
            token_ids=(version, number),
            block_key=blocks[number].key,
            fingerprint=MANIFEST.fingerprint,
            vector=_vector(document, version, number),
        )
        for number in range(count)
    ]
    return rows, blocks


def same(one: Row, other: Row) -> bool:
    """Everything equal, the vector included."""
    if one.vector is None or other.vector is None or not np.array_equal(one.vector, other.vector):
        return False
    names = [name for name in Row.__dataclass_fields__ if name != "vector"]
    return all(getattr(one, name) == getattr(other, name) for name in names)


def _block(document: str, version: int, number: int) -> Block:
    shared = number == 0 and version % _SHARED_EACH == 0
    fields = {"shared": version // _SHARED_EACH % 7} if shared else {"of": document, "version": version}
    fields["number"] = number
    seed = _seed(str(sorted(fields.items())), number)
    return Block(fields, (np.random.default_rng(seed).integers(-128, 128, (8, 64), dtype=np.int8),))


def _vector(document: str, version: int, number: int) -> np.ndarray:
    vector = np.random.default_rng([_seed(document, version), number]).normal(size=DIM)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def _seed(text: str, number: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{text}/{number}".encode(), digest_size=6).digest(), "little")
