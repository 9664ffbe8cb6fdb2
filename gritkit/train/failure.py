"""What is left of a batch whose loss is not finite: its tensors and texts on disk, to be looked at.

This module knows nothing about models or the Trainer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from gritkit.batch import Batch
from gritkit.data import PackedBatch
from gritkit.files import staged_folder

_ROWS = ("embed_rows", "read_rows", "next_token_rows")
_TENSORS = ("ids_T", "positions_T", "lengths_S", "pool_mask_T", "loss_mask_T", "share_S")


def save_failed_batch(
    folder: Path, batch: PackedBatch, figures: Mapping[str, Any], decode: Callable[[Sequence[int]], str]
) -> None:
    """Write what the batch can be looked at and run again from to ``folder``, whole or not at all.

    ``batch.safetensors``: every row's ids, positions, lengths, masks and shares, as ``embed_rows.0.ids_T`` and so on,
    ``restore``, and what the contrastive loss was told, as ``contrast.owner_P``. ``batch.json``: ``figures``, each
    row's texts, what each of them reads, and the counts.
    """
    tensors: dict[str, Tensor] = {}
    texts: dict[str, list[list[str]]] = {}
    reads: dict[str, list[Any]] = {}
    for kind in _ROWS:
        rows: list[Batch] = getattr(batch, kind)
        for number, row in enumerate(rows):
            tensors |= {f"{kind}.{number}.{name}": getattr(row, name).contiguous() for name in _TENSORS}
        texts[kind] = [[decode(ids.tolist()) for ids in row.ids_T.split(row.lengths_S.tolist())] for row in rows]
        reads[kind] = [row.reads_S for row in rows]
    tensors["restore"] = batch.restore
    if batch.contrast is not None:
        told = vars(batch.contrast).items()
        tensors |= {f"contrast.{name}": value for name, value in told if isinstance(value, Tensor)}
    with staged_folder(folder) as stage:
        (stage / "batch.safetensors").write_bytes(save(tensors))
        counts = {name: getattr(batch, name) for name in ("num_counted", "num_tokens", "budget")}
        described = {**figures, **counts, "texts": texts, "reads": reads}
        text = json.dumps(described, ensure_ascii=False, indent=1)
        (stage / "batch.json").write_text(text + "\n", encoding="utf-8")
