"""What the original GRIT implementation computed on a tiny Mistral, number by number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gritkit import GritModel
from gritkit.generation.decoder import Request
from gritkit.generation.params import SamplingParams
from gritkit.model import Vectors

POOLING = {"mean": "mean", "weightedmean": "weighted_mean", "lasttoken": "last", "cls": "cls"}
ATTENTION = {"bbcc": "bidirectional", "cccc": "causal"}
# No window here, but the original code lifts windows for texts.
GRIT: dict[str, Any] = {"prompt_format": "grit", "embedding_window": "full", "device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def golden(shared: Path) -> tuple[Path, dict[str, Any], dict[str, np.ndarray]]:
    folder = shared / "golden"
    with np.load(folder / "reference.npz") as arrays:
        return folder / "tiny-mistral", json.loads((folder / "meta.json").read_text()), dict(arrays)


@pytest.fixture(scope="module")
def model(golden) -> GritModel:
    return GritModel.from_pretrained(golden[0], **GRIT)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("pooling", POOLING)
def test_vectors(golden, pooling: str, attention: str) -> None:
    folder, meta, expected = golden
    model = GritModel.from_pretrained(
        folder, pooling=POOLING[pooling], embedding_attention=ATTENTION[attention], **GRIT
    )
    instruction = meta["instruction"].split("\n")[1]

    def embed(**options: Any) -> Vectors:
        return model.embed(meta["texts"], **options)

    got = {
        "inst": embed(instruction=instruction),
        "noinst": embed(),
        "trunc16": embed(instruction=instruction, max_length=40, truncate=True),
    }
    for case, vectors in got.items():
        np.testing.assert_allclose(vectors, expected[f"{pooling}.{attention}.{case}"], atol=1e-5, rtol=0, err_msg=case)
    if (pooling, attention) != ("cls", "cccc"):  # there the first token sees nothing else
        assert np.abs(got["trunc16"] - got["inst"]).max() > 1e-3  # the third text was indeed cut


def test_key_values_of_a_document(golden, model: GritModel) -> None:
    _, meta, expected = golden
    vectors, (document,) = model.read([meta["texts"][2]])
    np.testing.assert_allclose(vectors, np.atleast_2d(expected["doc_rep"]), atol=1e-5, rtol=0)
    tables = model.rope.tables(torch.arange(len(document)))
    for layer, (keys, values) in enumerate(zip(document.keys, document.values, strict=True)):
        rotated = model.rope.rotate(keys[None], tables, layer)
        np.testing.assert_allclose(rotated[0].numpy(), expected[f"cache.k{layer}"].squeeze(), atol=1e-5, rtol=0)
        np.testing.assert_allclose(values.numpy(), expected[f"cache.v{layer}"].squeeze(), atol=1e-5, rtol=0)


def test_what_follows_a_cached_document(golden, model: GritModel) -> None:
    _, meta, expected = golden
    _, (document,) = model.read([meta["texts"][2]])
    prompt = model.tokens.question_prompt(meta["query"])
    assert model.tokens.backend.decode(prompt) == meta["format"].format(query=meta["query"])
    logits: list[torch.Tensor] = []
    inner = model._backbone.logits

    def tap(*inputs: Any) -> torch.Tensor:
        logits.append(inner(*inputs))
        return logits[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model._backbone, "logits", tap)
        (completion,) = model.generate([Request(prompt, SamplingParams(max_new_tokens=12), [document])])
    np.testing.assert_allclose(logits[0][0].numpy(), expected["doc_cache.logits"].squeeze(), atol=1e-5, rtol=0)
    assert list(completion.token_ids) == expected["doc_cache.greedy"].squeeze().tolist()
    assert completion.usage.cached_tokens == len(document)
