"""Per-row key-values of running generations: a fixed number of slots of a fixed length.

A slot belongs to one row from its join to its leave. The attention function writes each step's keys and values after
what the slot already holds and reads the whole of it, so rows of any length decode together.

This module knows nothing about requests, sampling or models; a layer's buffer takes its shape, dtype and device from
the first keys that the layer writes, so models spread over several devices need no extra word.

Shapes: S slots, G key-value heads, M tokens a slot holds, D head size, N tokens that are written.
"""

from __future__ import annotations

import math
import mmap
import os

import torch
from torch import Tensor

from gritkit.errors import InputError
from gritkit.plan import Plan


class SlotStore:
    """Preallocated keys and values [S, M + 1, G, D] per layer, keys rotated at their true positions.

    A token's heads lie together: writing one token of every row is one copy of a few rows.
    """

    def __init__(self, num_slots: int, max_length: int) -> None:
        self.num_slots = num_slots
        self.max_length = max_length
        self._free = list(range(num_slots))[::-1]
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def scratch(self) -> int:
        """The place past what a slot holds, where idle slots of a captured pass write what nobody reads."""
        return self.max_length

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def free(self) -> tuple[int, ...]:
        """The free slots."""
        return tuple(self._free)

    def take(self, slot: int | None = None) -> int:
        """A free slot, this one if it is named. Raises InputError when there is none: ask ``num_free`` first."""
        if not self._free:
            raise InputError(f"all {self.num_slots} slots are taken")
        if slot is None:
            return self._free.pop()
        if slot not in self._free:
            raise InputError(f"slot {slot} is taken")
        self._free.remove(slot)
        return slot

    @torch.inference_mode()
    def copy(self, source: int, slot: int, length: int) -> None:
        """The first ``length`` tokens of one slot into another, in every layer that has written anything."""
        for keys, values in self._buffers.values():
            keys[slot, :length] = keys[source, :length]
            values[slot, :length] = values[source, :length]

    def release(self, slot: int) -> None:
        """Give a slot back; its contents are overwritten later; nothing past a row's length has any weight."""
        if slot in self._free or not 0 <= slot < self.num_slots:
            raise InputError(f"slot {slot} is not taken")
        self._free.append(slot)

    @torch.inference_mode()
    def finite(self, slot: int, length: int) -> bool:
        """Whether a slot's first tokens are numbers in every layer."""
        found = [x[slot, :length].isfinite().all() for buffers in self._buffers.values() for x in buffers]
        return all(map(bool, found))  # when all have been asked for: a GPU is waited for once

    @torch.inference_mode()
    def wipe(self, slot: int, length: int) -> None:
        """Zero a slot's first tokens in every layer. What is masked out is read all the same, and must be a number."""
        for buffers in self._buffers.values():
            for buffer in buffers:
                buffer[slot, :length].zero_()

    @torch.inference_mode()  # the first writer's mode would otherwise decide who may write after it
    def put(self, layer: int, plan: Plan, key_1GTD: Tensor, value_1GTD: Tensor) -> None:
        keys, values = self._of(layer, key_1GTD, value_1GTD)
        longest = max((s.past + s.length for s in plan.segments if s.slot is not None), default=0)
        if longest > self.max_length:  # before anything is written
            raise InputError(f"a slot holds {self.max_length} tokens and {longest} are needed")
        decoding = plan.num_decoding
        if decoding:
            slots, places = plan.decoding_places(keys.device)
            rows = plan.kept(("rows of slots", keys.device), lambda: slots * keys.shape[1] + places)
            for buffer, new_1GTD in ((keys, key_1GTD), (values, value_1GTD)):
                buffer.view(-1, *buffer.shape[2:]).index_copy_(0, rows, new_1GTD[0, :, :decoding].transpose(0, 1))
        for segment in plan.segments[decoding:]:
            if segment.slot is not None:
                new = slice(segment.start, segment.end)
                self.write(layer, segment.slot, segment.past, key_1GTD[0, :, new], value_1GTD[0, :, new])

    @torch.inference_mode()
    def write(self, layer: int, slot: int, at: int, keys_GND: Tensor, values_GND: Tensor) -> None:
        """Set N tokens of a slot from place ``at`` on; also how cached documents enter."""
        keys, values = self._of(layer, keys_GND[None], values_GND[None])
        end = at + keys_GND.shape[1]
        if end > self.max_length:
            raise InputError(f"a slot holds {self.max_length} tokens and {end} are needed")
        keys[slot, at:end] = keys_GND.transpose(0, 1)
        values[slot, at:end] = values_GND.transpose(0, 1)

    def get(self, layer: int, slot: int, start: int, end: int) -> tuple[Tensor, Tensor]:
        return self.get_many(layer, slot, slot + 1, start, end)

    def get_many(self, layer: int, first: int, last: int, start: int, end: int) -> tuple[Tensor, Tensor]:
        keys, values = self._buffers[layer]
        return keys[first:last, start:end].transpose(1, 2), values[first:last, start:end].transpose(1, 2)

    def _of(self, layer: int, key_1GTD: Tensor, value_1GTD: Tensor) -> tuple[Tensor, Tensor]:
        if layer not in self._buffers:
            (_, heads, _, size), value_size = key_1GTD.shape, value_1GTD.shape[3]
            places = self.scratch + 1
            self._buffers[layer] = (
                _zeros(key_1GTD, self.num_slots, places, heads, size),
                _zeros(value_1GTD, self.num_slots, places, heads, value_size),
            )
        return self._buffers[layer]


def _zeros(like: Tensor, *shape: int) -> Tensor:
    """``like.new_zeros(shape)``; on a CPU in memory that the system hands out when it is first written to, so that
    slots cost what rows have put into them, and not what they could hold."""
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    size = math.prod(shape) * like.element_size()
    private = {} if os.name == "nt" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
    return torch.frombuffer(mmap.mmap(-1, size, **private), dtype=like.dtype).view(shape)
