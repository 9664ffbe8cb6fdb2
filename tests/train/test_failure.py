from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from gritkit.batch import Batch
from gritkit.data import (
    Contrast,
    EmbeddingRecord,
    GenerativeRecord,
    Lengths,
    Mixer,
    PackedBatch,
    load,
    pack_batch,
    share_of,
    tokenise,
)
from gritkit.losses import InfoNCE, NextToken
from gritkit.model import GritModel
from gritkit.train import Objective, unified_step
from gritkit.train.failure import save_failed_batch
from tests.models import grit_model

RECORDS = [
    EmbeddingRecord.of("one text", ["another"], ["no answer"]),
    EmbeddingRecord.of("who jumps", ["the fox jumps"], ["nobody"], answer="the fox"),
    GenerativeRecord.of("naïve words to be predicted"),
]


def packed(model: GritModel, records: list[EmbeddingRecord | GenerativeRecord]) -> PackedBatch:
    data = tokenise(load(records), model.tokens, Lengths(query=64, passage=64, generative=160))
    mixer = Mixer(data, embedding_batch_size=2, generative_batch_size=1)
    return pack_batch(share_of(mixer.draw(), NextToken().shares), 32, len(model.tokens.bos_ids))


def saved(folder: Path) -> PackedBatch:
    """What was written, put together again."""
    told = json.loads((folder / "batch.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "batch.safetensors")

    def group(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    rows = {
        kind: [
            Batch(**group(f"{kind}.{number}."), reads_S=tuple(tuple(map(tuple, one)) for one in reads))
            for number, reads in enumerate(all_reads)
        ]
        for kind, all_reads in told["reads"].items()
    }
    known = group("contrast.")
    contrast = Contrast(num_queries=len(known["alone_Q"]), **known) if known else None
    counts = {name: told[name] for name in ("num_counted", "num_tokens", "budget")}
    return PackedBatch(**rows, restore=tensors["restore"], contrast=contrast, **counts)


def test_a_failed_batch_can_be_looked_at_and_run_again(tmp_path: Path) -> None:
    model = grit_model("llama", prompt_format="grit")
    batch = packed(model, RECORDS)
    assert batch.embed_rows
    assert batch.read_rows
    save_failed_batch(tmp_path / "failed", batch, {"step": 3}, model.tokens.backend.decode)
    told = json.loads((tmp_path / "failed" / "batch.json").read_text(encoding="utf-8"))
    assert told["step"] == 3
    texts = [text for row in told["texts"]["embed_rows"] for text in row]
    assert sum("one text" in text for text in texts) == 1
    assert "naïve words to be predicted" in told["texts"]["next_token_rows"][0][0]
    objective = Objective(contrastive=InfoNCE(), next_token=NextToken())
    before, after = (unified_step(model, one, objective) for one in (batch, saved(tmp_path / "failed")))
    assert before.contrastive is not None
    assert torch.equal(before.total, after.total)


def test_one_without_texts_to_embed(tmp_path: Path) -> None:
    model = grit_model("llama", prompt_format="grit")
    save_failed_batch(tmp_path / "failed", packed(model, RECORDS[-1:]), {}, model.tokens.backend.decode)
    again = saved(tmp_path / "failed")
    assert again.contrast is None
    assert not again.embed_rows
