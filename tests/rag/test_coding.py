from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from gritkit.kv.blocks import Block
from gritkit.kv.codecs import CodecName
from gritkit.model import GritModel
from gritkit.rag.coding import BlockCoder
from tests.models import TEXTS, WINDOWED, grit_model, shared_model


@pytest.fixture(scope="module")
def model() -> GritModel:
    return shared_model("llama")


@pytest.mark.parametrize("codec", ["exact", "bf16", "int8", "int4"])
@pytest.mark.parametrize("name", ["llama", *WINDOWED])
def test_a_block_holds_the_document_it_was_made_of(name: str, codec: CodecName) -> None:
    model = shared_model(name)
    coder = BlockCoder(model, codec)
    for document in model.read(list(TEXTS))[1]:  # the last is shorter than the windows
        block = coder.block(document)
        back = coder.document(block)
        assert back is not None
        assert (back.ids, back.num_bos, back.num_prompt) == (document.ids, document.num_bos, document.num_prompt)
        assert block.key == coder.key(document.ids, document.num_bos, document.num_prompt)
        decoded = back.decoded(torch.device("cpu"))
        tolerance = {"exact": 0, "bf16": 0.01, "int8": 0.01, "int4": 0.1}[codec]
        for before, after in zip((*document.keys, *document.values), (*decoded.keys, *decoded.values), strict=True):
            assert after.shape == before.shape
            if before.numel():
                assert (after - before).abs().max() <= tolerance * before.abs().max()


def test_the_name_depends_on_everything_the_numbers_do(model: GritModel) -> None:
    (document,) = model.read(TEXTS[0])[1]
    coders = [
        BlockCoder(model, "int8"),
        BlockCoder(model, "exact"),
        BlockCoder(model, "int8", salt="tenant"),
        BlockCoder(grit_model("llama", prompt_format="e5"), "int8"),
        BlockCoder(grit_model("llama", embedding_attention="causal"), "int8"),
        BlockCoder(grit_model("llama", dtype=torch.float64), "int8"),
        BlockCoder(grit_model("mistral"), "int8"),
    ]
    keys = [coder.key(document.ids, 1, 1) for coder in coders]
    keys += [
        coders[0].key(document.ids[:-1], 1, 1),
        coders[0].key(document.ids, 0, 1),
        coders[0].key(document.ids, 1, 2),
    ]
    assert len(set(keys)) == len(keys)
    assert coders[0].key(list(document.ids), 1, 1) == keys[0]
    assert coders[0].prefix_key(document.ids) not in keys
    assert coders[0].prefix_key(document.ids) != coders[2].prefix_key(document.ids)
    for other in coders[1:]:
        assert other.document(coders[0].block(document)) is None
        assert not other.owns(coders[0].block(document))


def _changed(block: Block, **fields: Any) -> Block:
    return dataclasses.replace(block, fields={**block.fields, **fields})


def test_what_names_itself_otherwise_is_nobodys(model: GritModel) -> None:
    coder = BlockCoder(model, "int8")
    block = coder.block(model.read(TEXTS[0])[1][0])
    assert coder.owns(block)
    for fields in (
        {"model": "0" * 64}, {"codec": "int4"}, {"dtype": "float16"}, {"salt": "x"}, {"more": 1}, {"ids": 5},
        {"ids": None}, {"num_bos": "1"}, {"num_bos": 99}, {"num_prompt": -1}, {"num_prompt": None},
    ):  # fmt: skip
        assert not coder.owns(_changed(block, **fields)), fields
        assert coder.document(_changed(block, **fields)) is None, fields
    for name in block.fields:
        rest = {key: value for key, value in block.fields.items() if key != name}
        assert coder.document(dataclasses.replace(block, fields=rest)) is None, name


def test_arrays_that_this_model_would_not_have_written_are_no_document(model: GritModel) -> None:
    coder = BlockCoder(model, "int8")
    block = coder.block(model.read(TEXTS[0])[1][0])
    codes, scales, *rest = block.arrays
    for arrays in (
        (),
        block.arrays[:-2],
        (*block.arrays, codes, scales),
        (codes[:, :-1], scales[:, :-1], *rest),
        (codes[:1], scales[:1], *rest),
        (codes[..., :4], scales, *rest),
        (codes.astype(np.int16), scales, *rest),
        (scales, codes, *rest),
    ):
        made = dataclasses.replace(block, arrays=arrays)
        assert coder.owns(made)
        assert coder.document(made) is None
