from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gritkit.errors import UnsupportedModelError
from gritkit.model import GritModel
from gritkit.plan import Plan, Segment
from gritkit.rope import Rope
from tests.models import MOVABLE, TEXTS, grit_model, shared_model


def native(model: GritModel, ids: Tensor, offset: int) -> dict[int, tuple[Tensor, Tensor]]:
    """Keys and values [1, G, T, D] as the model's own code rotates them at an offset."""
    kept: dict[int, tuple[Tensor, Tensor]] = {}

    def hook(layer: int, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        kept[layer] = (key, value)
        return query, key

    with torch.no_grad():
        model._backbone.hidden(
            ids, torch.arange(len(ids)) + offset, Plan((Segment(0, len(ids), False),), key_hook=hook)
        )
    return kept


# fp32 angles grow with the position, and so does what their last bit is worth.
@pytest.mark.parametrize(("offset", "tolerance"), [(0, 2e-6), (100, 2e-5), (5_000, 1e-3), (100_000, 2e-2)])
@pytest.mark.parametrize("name", ["llama", "llama3_rope", "llama_yarn", "gpt_neox", "gemma3", "phi3", "qwen3"])
def test_kept_keys_rotated_to_an_offset_are_the_models_own(name: str, offset: int, tolerance: float) -> None:
    model = shared_model(name)
    (document,) = model.read(TEXTS[1])[1]
    expected = native(model, torch.tensor(document.ids), offset)
    tables = model.rope.tables(torch.arange(len(document)) + offset)
    for layer, (keys, values) in enumerate(zip(document.keys, document.values, strict=True)):
        rotated = model.rope.rotate(keys[None], tables, layer)
        for found, wanted in ((rotated, expected[layer][0]), (values[None], expected[layer][1])):
            wanted = wanted[:, :, -found.shape[2] :]  # a sliding-window layer keeps the last ones
            assert (found - wanted).norm() / wanted.norm() < tolerance, f"layer {layer}"


def test_the_kinds_of_layers_have_their_own_frequencies() -> None:
    tables = shared_model("gemma3").rope.tables(torch.arange(50))
    assert set(tables) == {"sliding_attention", "full_attention"}
    assert not torch.allclose(tables["sliding_attention"][0], tables["full_attention"][0])


def test_yarn_scales_and_the_kept_keys_do_not() -> None:
    rope = shared_model("llama_yarn").rope
    tables = rope.tables(torch.zeros(1, dtype=torch.long))
    scaling = float(tables[None][0].flatten()[0])
    assert scaling > 1.1
    keys = torch.randn(1, 2, 1, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rope.rotate(keys, tables, 0), keys * scaling)
    torch.testing.assert_close(rope.plain(keys * scaling, tables, 0), keys)


def test_partial_rotation_leaves_the_rest() -> None:
    model = shared_model("gpt_neox")
    tables = model.rope.tables(torch.tensor([9]))
    size = tables[None][0].shape[-1]
    keys = torch.randn(1, 4, 1, 8, generator=torch.Generator().manual_seed(0))
    rotated = model.rope.rotate(keys, tables, 0)
    assert size < 8
    assert torch.equal(rotated[..., size:], keys[..., size:])
    assert not torch.allclose(rotated[..., :size], keys[..., :size])


def test_layers_without_rotation_are_left_alone() -> None:
    rope = grit_model("llama").rope
    rope.rotates[1] = False
    keys, tables = torch.randn(1, 2, 3, 8), rope.tables(torch.arange(3))
    assert torch.equal(rope.rotate(keys, tables, 1), keys)
    assert not torch.equal(rope.rotate(keys, tables, 0), keys)


@pytest.mark.parametrize("name", MOVABLE)
def test_reading_gives_the_vectors_of_embedding(name: str) -> None:
    model = shared_model(name)
    vectors, documents = model.read(list(TEXTS))
    torch.testing.assert_close(torch.from_numpy(vectors), torch.from_numpy(model.embed(list(TEXTS))), atol=1e-5, rtol=0)
    for text, document in zip(TEXTS, documents, strict=True):
        assert document.ids == tuple(model.tokens.raw_prompt(text))
        assert document.num_bos == 1
        assert len(document.keys) == len(document.values) == 3
        alone = model.read(text)[1][0]
        torch.testing.assert_close(document.keys, alone.keys, atol=1e-4, rtol=1e-4)
        for tensor in (*document.keys, *document.values):  # its own memory, not a view of the row's
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


class NoRotation(nn.Module):
    pass


def test_decoders_that_cannot_be_moved_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match="NoRotation has no rotary positions"):
        Rope(NoRotation(), 2, None)
    decoder = grit_model("llama").lm.get_decoder()
    decoder.rotary_emb.rope_type = "dynamic"
    with pytest.raises(UnsupportedModelError, match="LlamaModel has rotary positions of type 'dynamic'"):
        Rope(decoder, 3, None)
