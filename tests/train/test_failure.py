from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from gritkit.batch import pack
from gritkit.data import PackedBatch
from gritkit.train.failure import save_failed_batch
from tests.models import grit_model


def test_a_failed_batch_can_be_looked_at_and_run_again(tmp_path: Path) -> None:
    model = grit_model("llama", prompt_format="grit")
    texts = model.tokens.to_embed(["one text", "another"], "passage", None, 64, truncate=False)
    example = model.tokens.text_example("to be predicted")
    batch = PackedBatch([pack(texts)], [], torch.arange(2), None, [pack([example])], 5, 9, 64)
    save_failed_batch(tmp_path / "failed", batch, {"step": 3}, model.tokens.backend.decode)
    told = json.loads((tmp_path / "failed" / "batch.json").read_text())
    assert told["step"] == 3
    assert ["one text" in text for text in told["texts"]["embed_rows"][0]] == [True, False]
    assert "to be predicted" in told["texts"]["next_token_rows"][0][0]
    tensors = load_file(tmp_path / "failed" / "batch.safetensors")
    assert torch.equal(tensors["embed_rows.0.ids_T"], batch.embed_rows[0].ids_T)
    assert torch.equal(tensors["next_token_rows.0.loss_mask_T"], batch.next_token_rows[0].loss_mask_T)
    assert len(tensors) == 12
