"""Each codec against a slow twin in numpy that computes one number after the other, and against its stated error."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gritkit.errors import InputError, StoreError
from gritkit.kv.codecs import CodecName, StoredKV, check_codec, dtype_of, encode
from gritkit.kv.dockv import DocKV

CODECS: tuple[CodecName, ...] = ("exact", "bf16", "int8", "int4")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SMALLEST = 2.0**-24
CPU = torch.device("cpu")


def document(
    *shapes: tuple[int, int, int], seed: int = 0, dtype: torch.dtype = torch.float32, length: int = 0
) -> DocKV:
    """Random key-values, a layer for each shape [heads, tokens, head size]; keys have channels that stand out."""
    generator = torch.Generator().manual_seed(seed)
    keys = tuple(
        torch.randn(shape, generator=generator) * torch.linspace(0.1, 8, shape[2]) + torch.linspace(-3, 3, shape[2])
        for shape in shapes
    )
    values = tuple(torch.randn(shape, generator=generator) for shape in shapes)
    size = length or max(shape[1] for shape in shapes) or 1
    return DocKV(
        tuple(range(size)), min(1, size), min(1, size), *(tuple(x.to(dtype) for x in some) for some in (keys, values))
    )


def stored(whole: DocKV, codec: CodecName) -> StoredKV:
    arrays = encode(whole, codec)
    return StoredKV(whole.ids, whole.num_bos, whole.num_prompt, codec, whole.keys[0].dtype, arrays)


def pairs(whole: DocKV, codec: CodecName) -> list[tuple[bool, Tensor, Tensor]]:
    """(whether keys, before, after) of every tensor."""
    back = stored(whole, codec)
    layers = [back.layer(index, CPU) for index in range(back.num_layers)]
    return [
        (side == 0, before[index], layers[index][side])
        for index in range(whole.num_layers)
        for side, before in ((0, whole.keys), (1, whole.values))
    ]


# -- the slow twins ------------------------------------------------------------------------------------------------


def half(x: float) -> float:
    return float(np.float16(x))


def slow_int8(x: np.ndarray) -> np.ndarray:
    """One token and head at a time."""
    out = np.zeros_like(x)
    for g in range(x.shape[0]):
        for t in range(x.shape[1]):
            scale = half(max(float(np.float32(np.abs(x[g, t]).max()) / np.float32(127)), SMALLEST))
            for d in range(x.shape[2]):
                code = int(np.rint(np.float32(x[g, t, d]) / np.float32(scale)))
                out[g, t, d] = max(-127, min(127, code)) * np.float32(scale)
    return out


def slow_int4(x: np.ndarray, keys: bool) -> np.ndarray:
    """One group at a time: 32 tokens of a channel for keys, the channels of a token for values."""
    out = np.zeros_like(x)
    for g in range(x.shape[0]):
        if keys:
            groups = [
                [(t, d) for t in range(start, min(start + 32, x.shape[1]))]
                for start in range(0, x.shape[1], 32)
                for d in range(x.shape[2])
            ]
        else:
            groups = [[(t, d) for d in range(x.shape[2])] for t in range(x.shape[1])]
        for group in groups:
            numbers = [np.float32(x[g, t, d]) for t, d in group]
            low = half(min(numbers))
            scale = half(max(float((max(numbers) - np.float32(low)) / np.float32(15)), SMALLEST))
            for (t, d), number in zip(group, numbers, strict=True):
                code = int(np.rint((number - np.float32(low)) / np.float32(scale)))
                out[g, t, d] = np.float32(low) + max(0, min(15, code)) * np.float32(scale)
    return out


@pytest.mark.parametrize("tokens", [1, 31, 32, 33, 70])
def test_int8_and_int4_equal_their_slow_twins(tokens: int) -> None:
    whole = document((2, tokens, 6), (1, tokens, 4), seed=tokens)
    for keys, before, after in pairs(whole, "int8"):
        np.testing.assert_allclose(after.numpy(), slow_int8(before.numpy()), rtol=1e-6, err_msg=f"{keys=}")
    for keys, before, after in pairs(whole, "int4"):
        np.testing.assert_allclose(after.numpy(), slow_int4(before.numpy(), keys), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_is_the_same_to_the_last_bit(dtype: torch.dtype) -> None:
    for _, before, after in pairs(document((2, 5, 6), (2, 3, 6), dtype=dtype), "exact"):
        assert after.dtype == dtype
        assert torch.equal(before, after)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bf16_is_one_rounding(dtype: torch.dtype) -> None:
    for _, before, after in pairs(document((2, 5, 6), dtype=dtype), "bf16"):
        assert after.dtype == dtype
        assert ((after.double() - before.double()).abs() <= 2.0**-8 * before.double().abs()).all()
        if dtype == torch.bfloat16:
            assert torch.equal(before, after)


@pytest.mark.parametrize("codec", ["int8", "int4"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_come_in_the_type_of_the_model(dtype: torch.dtype, codec: CodecName) -> None:
    for keys, before, after in pairs(document((2, 40, 6), dtype=dtype), codec):
        assert after.dtype == dtype
        coarse = slow_int8(before.float().numpy()) if codec == "int8" else slow_int4(before.float().numpy(), keys)
        torch.testing.assert_close(after, torch.from_numpy(coarse).to(dtype), rtol=2e-2, atol=1e-6)
        assert not torch.equal(before, after)


# -- the error -----------------------------------------------------------------------------------------------------

numbers = st.one_of(
    st.floats(-1e4, 1e4, width=32),
    st.floats(-(2.0**-20), 2.0**-20, width=32),
    st.sampled_from([0.0, -0.0, 65504.0, -65504.0, 1e-40, 3e-8]),
)


@st.composite
def tensors(draw: Any) -> Tensor:
    heads, tokens, size = draw(st.integers(1, 3)), draw(st.integers(0, 70)), 2 * draw(st.integers(1, 4))
    if draw(st.booleans()):
        flat = draw(st.lists(numbers, min_size=1, max_size=40))
        return torch.tensor(flat).repeat(heads * tokens * size)[: heads * tokens * size].reshape(heads, tokens, size)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    return torch.randn(heads, tokens, size, generator=generator) * 10.0 ** draw(st.integers(-9, 3))


@given(x=tensors())
@settings(max_examples=150, deadline=None)
def test_no_number_is_off_by_more_than_is_stated(x: Tensor) -> None:
    """int8: half a scale. int4: half a scale, and the rounding of the smallest value and of the scale to float16."""
    whole = DocKV(tuple(range(max(1, x.shape[1]))), 0, 0, (x,), (x.flip(-1),))
    for _, before, after in pairs(whole, "int8"):
        scale = before.abs().amax(-1, keepdim=True) / 127
        assert ((after - before).abs() <= scale / 2 * (1 + 2.0**-9) + 127 * SMALLEST / 2).all()
    for keys, before, after in pairs(whole, "int4"):
        low, high = extremes(before, keys)
        bound = (high - low) / 30 * (1 + 2.0**-8) + (high - low) * 2.0**-11 + low.abs() * 2.0**-10 + 16 * SMALLEST
        assert ((after - before).abs() <= bound).all()
    for _, before, after in pairs(whole, "bf16"):
        assert ((after - before).abs() <= before.abs() * 2.0**-8 + 1e-38).all()
    for _, before, after in pairs(whole, "exact"):
        assert torch.equal(before, after)


def extremes(x: Tensor, keys: bool) -> tuple[Tensor, Tensor]:
    """Smallest and largest number of each number's int4 group."""
    if not keys:
        return x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    low, high = torch.empty_like(x), torch.empty_like(x)
    for start in range(0, x.shape[1], 32):
        part = x[:, start : start + 32]
        low[:, start : start + 32] = part.amin(1, keepdim=True)
        high[:, start : start + 32] = part.amax(1, keepdim=True)
    return low, high


def test_a_channel_that_stands_out_does_not_spoil_the_others_with_int4() -> None:
    """Why keys are grouped by channel: one of them is a hundred times as large at every token."""
    x = torch.randn(1, 64, 8, generator=torch.Generator().manual_seed(0))
    x[..., 3] += 100
    (_, _, keys), (_, _, values) = pairs(DocKV(tuple(range(64)), 0, 0, (x,), (x,)), "int4")
    others = [0, 1, 2, 4, 5, 6, 7]
    assert (keys - x)[..., others].abs().max() < 0.25
    assert (values - x)[..., others].abs().max() > 1


# -- sizes and shapes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "dtype", "size"),
    [
        ("exact", torch.float32, 2 * 2 * 64 * 4),
        ("exact", torch.bfloat16, 2 * 2 * 64 * 2),
        ("bf16", torch.float32, 2 * 2 * 64 * 2),
        ("int8", torch.float32, 2 * 2 * (64 + 2)),
        ("int4", torch.float32, 2 * (2 * 32 + 2 + 2) + 2 * 2 * 64 * 2 // 32),
    ],
)
def test_bytes_of_a_token(codec: CodecName, dtype: torch.dtype, size: int) -> None:
    """Keys and values of two heads of 64. int4: keys share a scale and a smallest value among 32 tokens."""
    one = stored(document((2, 320, 64), dtype=dtype), codec)
    assert one.num_bytes == 320 * size


@pytest.mark.parametrize("codec", CODECS)
def test_a_layer_may_keep_nothing(codec: CodecName) -> None:
    """A window of one token: what follows sees itself alone."""
    whole = document((2, 0, 4), (2, 3, 4), (2, 0, 4), length=3)
    back = stored(whole, codec)
    assert back.has_layout([((2, 0, 4),) * 2, ((2, 3, 4),) * 2, ((2, 0, 4),) * 2])
    assert [tuple(x.shape) for x in back.layer(0, CPU)] == [(2, 0, 4), (2, 0, 4)]
    decoded = back.decoded(CPU)
    assert (decoded.ids, decoded.num_bos, decoded.num_prompt) == (whole.ids, whole.num_bos, whole.num_prompt)
    assert [x.shape for x in decoded.keys] == [x.shape for x in whole.keys]
    for index in range(3):
        for one, other in zip(back.layer(index, CPU), (decoded.keys[index], decoded.values[index]), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("codec", CODECS)
def test_keys_and_values_may_be_of_different_sizes(codec: CodecName) -> None:
    keys, values = torch.randn(2, 5, 8), torch.randn(2, 5, 4)
    back = stored(DocKV(tuple(range(5)), 0, 0, (keys,), (values,)), codec)
    assert [tuple(x.shape) for x in back.layer(0, CPU)] == [(2, 5, 8), (2, 5, 4)]
    assert back.has_layout([((2, 5, 8), (2, 5, 4))])
    assert not back.has_layout([((2, 5, 4), (2, 5, 8))])


@pytest.mark.parametrize("codec", CODECS)
def test_has_layout_tells_what_this_codec_would_have_made(codec: CodecName) -> None:
    back = stored(document((2, 40, 4), (2, 3, 4)), codec)
    first, second = (2, 40, 4), (2, 3, 4)
    assert back.has_layout([(first, first), (second, second)])
    for wrong in ((2, 39, 4), (2, 41, 4), (1, 40, 4), (2, 40, 6), (2, 3, 4)):
        assert not back.has_layout([(wrong, first), (second, second)])
        assert not back.has_layout([(first, wrong), (second, second)])
    for count in (1, 3):
        assert not back.has_layout([(first, first), (second, second), (second, second)][:count])
    for arrays in (
        (back.arrays[0].reshape(-1), *back.arrays[1:]),
        (back.arrays[0].astype(np.int16), *back.arrays[1:]),
        (*back.arrays[:-1], back.arrays[-1].astype(np.float64)),
        back.arrays[:-1],
    ):
        assert not StoredKV(back.ids, 0, 0, codec, back.dtype, arrays).has_layout([(first, first), (second, second)])


def test_has_layout_knows_the_type_of_the_model() -> None:
    arrays = encode(document((2, 3, 4)), "exact")
    shape = (2, 3, 4)
    assert StoredKV((1, 2, 3), 0, 0, "exact", torch.float32, arrays).has_layout([(shape, shape)])
    assert not StoredKV((1, 2, 3), 0, 0, "exact", torch.float16, arrays).has_layout([(shape, shape)])


def test_arrays_are_the_documents_own() -> None:
    """What is written later to the tensors is not in the block."""
    whole = document((1, 4, 4))
    back = stored(whole, "int8")
    before = back.layer(0, CPU)[0].clone()
    whole.keys[0].zero_()
    assert torch.equal(back.layer(0, CPU)[0], before)
    assert before.abs().max() > 0


# -- what cannot be stored -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("where", ["keys", "values"])
def test_numbers_that_are_not_finite_are_refused(codec: CodecName, bad: float, where: str) -> None:
    whole = document((2, 40, 4), (2, 40, 4))
    getattr(whole, where)[1][1, 7, 2] = bad
    with pytest.raises(StoreError, match=rf"layer 1 are not finite as {codec}: .*another dtype"):
        encode(whole, codec)


@pytest.mark.parametrize(("codec", "largest"), [("bf16", 3.4e38), ("int8", 1e7), ("int4", 7e4)])
def test_numbers_beyond_the_codec_are_refused(codec: CodecName, largest: float) -> None:
    whole = document((1, 3, 4))
    whole.values[0][0, 1, 1] = -largest
    encode(whole, "exact")
    with pytest.raises(StoreError, match=rf"not finite as {codec}: where codec='exact'"):
        encode(whole, codec)


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_the_largest_numbers_of_float16_come_back_finite_or_not_at_all(codec: CodecName) -> None:
    refused = 0
    for largest in (65504.0, 65472.0, 65000.0, 60000.0):
        whole = document((1, 3, 4), dtype=torch.float16)
        whole.values[0][0, 1, 1] = largest
        try:
            assert stored(whole, codec).layer(0, CPU)[1].isfinite().all()
        except StoreError:
            refused += 1
    assert refused < 4


def test_odd_heads_have_no_int4() -> None:
    whole = document((2, 3, 5))
    assert stored(whole, "int8").has_layout([((2, 3, 5), (2, 3, 5))])
    with pytest.raises(InputError, match="even head size, not 5: use int8"):
        encode(whole, "int4")


def test_unknown_codecs_and_types_are_named() -> None:
    assert [check_codec(name) for name in CODECS] == list(CODECS)
    with pytest.raises(InputError, match=r"codec='int2' is not one of 'exact', 'bf16', 'int8', 'int4'"):
        check_codec("int2")
    assert dtype_of("bfloat16") is torch.bfloat16
    with pytest.raises(StoreError, match="'int32' cannot be read"):
        dtype_of("int32")
    whole = DocKV((1,), 0, 0, (torch.ones(1, 1, 2, dtype=torch.int32),), (torch.ones(1, 1, 2, dtype=torch.int32),))
    with pytest.raises(StoreError, match="int32 cannot be stored"):
        encode(whole, "exact")
