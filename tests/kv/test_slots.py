from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gritkit.errors import InputError
from gritkit.kv.slots import SlotStore
from gritkit.plan import Plan, Segment


def heads(num_tokens: int, seed: int = 0, value_size: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(1, 2, num_tokens, size, generator=generator) for size in (4, value_size))


def test_slots_are_taken_once_and_come_back() -> None:
    store = SlotStore(2, 8)
    taken = {store.take(), store.take()}
    assert (taken, store.num_free) == ({0, 1}, 0)
    with pytest.raises(InputError, match="all 2 slots are taken"):
        store.take()
    store.release(1)
    with pytest.raises(InputError, match="slot 1 is not taken"):
        store.release(1)
    with pytest.raises(InputError, match="slot 7 is not taken"):
        store.release(7)
    assert store.take() == 1


@pytest.mark.parametrize("lengths", [(1, 1, 1), (3, 1, 2)])
def test_each_segment_lands_in_its_slot_after_its_past(lengths: tuple[int, ...]) -> None:
    store = SlotStore(4, 8)
    key, value = heads(sum(lengths), value_size=6)
    segments, at = [], 0
    for slot, past, length in zip((2, 0, 3), (5, 0, 2), lengths, strict=True):
        segments.append(Segment(at, at + length, True, slot=slot, past=past))
        at += length
    store.put(0, Plan(tuple(segments), store=store), key, value)
    for segment in segments:
        assert segment.slot is not None
        found = store.get(0, segment.slot, segment.past, segment.past + segment.length)
        torch.testing.assert_close(
            found, (key[:, :, segment.start : segment.end], value[:, :, segment.start : segment.end])
        )
    assert store.get(0, 1, 0, 8)[0].abs().sum() == 0
    many = store.get_many(0, 1, 4, 2, 6)
    assert many[0].shape == (3, 2, 4, key.shape[3])
    assert torch.equal(many[0][1], store.get(0, 2, 2, 6)[0][0])


def test_segments_without_a_slot_are_not_kept() -> None:
    store = SlotStore(1, 8)
    store.put(0, Plan((Segment(0, 2, False), Segment(2, 3, True, slot=0)), store=store), *heads(3))
    assert torch.equal(store.get(0, 0, 0, 1)[0], heads(3)[0][:, :, 2:])
    assert store.get(0, 0, 1, 8)[0].abs().sum() == 0


@pytest.mark.parametrize("length", [1, 3])
def test_a_full_slot_refuses_before_it_writes(length: int) -> None:
    store = SlotStore(2, 4)
    with pytest.raises(InputError, match="a slot holds 4 tokens and"):
        store.put(0, Plan((Segment(0, length, True, slot=0, past=4),), store=store), *heads(length))
    with pytest.raises(InputError, match="a slot holds 4 tokens and 5"):
        store.write(0, 0, 3, *(x[0] for x in heads(2)))


def test_layers_are_apart() -> None:
    store = SlotStore(1, 4)
    for layer in (0, 1):
        store.write(layer, 0, 0, *(x[0] for x in heads(2, seed=layer)))
    for layer in (0, 1):
        assert torch.equal(store.get(layer, 0, 0, 2)[0], heads(2, seed=layer)[0])


@pytest.mark.parametrize("first", [True, False])
def test_documents_may_join_before_and_after_steps_in_inference_mode(first: bool) -> None:
    """A tensor made in inference mode cannot be written outside of it, so the store decides, not who came first."""
    store = SlotStore(2, 4)
    for inference in (first, not first):
        with torch.inference_mode(inference):
            store.write(0, int(inference), 0, *(x[0] for x in heads(2)))
            store.put(0, Plan((Segment(0, 1, True, slot=int(inference), past=2),), store=store), *heads(1))
    assert torch.equal(store.get(0, 0, 0, 2)[0], store.get(0, 1, 0, 2)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_was_never_written_is_zero(dtype: torch.dtype) -> None:
    store = SlotStore(3, 8)
    keys, values = (x.to(dtype) for x in heads(2, value_size=6))
    store.write(0, 1, 3, keys[0], values[0])
    for held, new in zip(store.get_many(0, 0, 3, 0, 8), (keys, values), strict=True):
        assert (held.dtype, held.shape) == (dtype, (3, 2, 8, new.shape[3]))
        assert held[1, :, 3:5].equal(new[0])
        assert held.count_nonzero() == new.count_nonzero()


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="no /proc")
def test_slots_take_the_memory_that_was_written_to() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    store = SlotStore(16, 4096)
    tokens = torch.ones(2, 4096, 64)
    before = resident()
    for layer in range(4):  # 67 MB each
        store.write(layer, 5, 0, tokens[:, :1], tokens[:, :1])
    assert resident() - before < 8 << 20
    store.write(0, 5, 0, tokens, tokens)
    assert resident() - before > 4 << 20


def test_what_was_wiped_of_a_slot_is_zero_in_every_layer_and_its_neighbours_are_not() -> None:
    store = SlotStore(2, 4)
    for layer in (0, 1):
        for slot in (0, 1):
            store.write(layer, slot, 0, *(torch.full_like(x[0], float("nan")) for x in heads(4)))
    store.wipe(0, 3)
    for layer in (0, 1):
        for held in store.get_many(layer, 0, 2, 0, 4):  # [slots, heads, tokens, size]
            assert not held[0, :, :3].any()
            assert held[0, :, 3].isnan().all()
            assert held[1].isnan().all()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("values", [False, True])
def test_what_is_no_number_is_found_in_any_layer_of_its_slot_alone(number: float, values: bool) -> None:
    store = SlotStore(3, 4)
    for layer in (0, 1):
        for slot in (0, 1, 2):
            store.write(layer, slot, 0, *(x[0] for x in heads(4, seed=slot)))
    assert all(store.finite(slot, 4) for slot in (0, 1, 2))
    with torch.inference_mode():
        store.get(1, 1, 2, 3)[values].view(-1)[-1] = number
    assert [store.finite(slot, 4) for slot in (0, 1, 2)] == [True, False, True]
    assert store.finite(1, 2)
