"""Decode steps of a GPU as captured graphs: the launches of a step are recorded once and replayed.

A small step's thousand launches take a processor several times as long as its work takes the GPU. A captured pass has
fixed shapes, so all of the first S slots take part, over their first L places, for a few S and L: a slot without a
decoding row computes what nobody reads and writes it past the slot's end.

This module knows nothing about requests or sampling.

Shapes: S slots of a pass, R decoding rows, V vocabulary.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gritkit.backbone import Backbone
from gritkit.kv.slots import SlotStore
from gritkit.plan import Plan, Segment

Capture = Callable[[Callable[[], Tensor]], tuple[Callable[[], Any], Tensor]]
"""What is given a pass and gives (how to run it again, where its result then stands)."""

_LEAST_PLACES = 256
_UNCAPTURED = 8
"""Steps of a size before it is captured, which takes as long as a few dozen of them."""
_LOG = logging.getLogger("gritkit.generation")


@dataclass(frozen=True)
class _Pass:
    inputs_4S: Tensor
    """Ids, positions, places in the slots, and whose logits are wanted: all that the pass reads and that is no weight
    of the model, on the device for as long as it may be replayed."""
    logits_SV: Tensor
    replay: Callable[[], Any]


class CapturedSteps:
    """The captured passes of one decoder, whose model keeps its weights where they are."""

    def __init__(self, backbone: Backbone, store: SlotStore, capture: Capture) -> None:
        self._backbone = backbone
        self._store = store
        self._capture = capture
        self._passes: dict[tuple[int, int], _Pass] = {}
        self._asked: Counter[tuple[int, int]] = Counter()
        self._refused = False

    def logits(self, rows: Sequence[tuple[int, int, int]]) -> Tensor | None:
        """Next-token logits [R, V] of rows given as (slot, token, its place in the slot).

        None where a step of this size is not captured yet, and where the model's pass cannot be, as when it decides by
        numbers that are on the device.
        """
        if self._refused:
            return None
        slots = [slot for slot, _, _ in rows]
        size = (
            _bucket(max(slots) + 1, 1, self._store.num_slots),
            _bucket(max(place for _, _, place in rows) + 1, _LEAST_PLACES, self._store.max_length),
        )
        found = self._pass_of(size)
        if found is None:
            return None
        inputs_4S = self._idle(size[0])
        for slot, token, place in rows:
            inputs_4S[:3, slot] = torch.tensor([token, place, place])
        found.inputs_4S.copy_(inputs_4S)
        found.replay()
        return found.logits_SV[torch.tensor(slots, device=found.logits_SV.device)]

    def _pass_of(self, size: tuple[int, int]) -> _Pass | None:
        self._asked[size] += 1
        if size not in self._passes and self._asked[size] > _UNCAPTURED:
            try:
                self._passes[size] = self._captured(*size)
            except RuntimeError as error:
                _LOG.warning("decode steps of this model cannot be captured and take longer: %s", error)
                self._refused = True
        return self._passes.get(size)

    def _idle(self, num_slots: int) -> Tensor:
        """The inputs of slots without a decoding row."""
        nothing = [0] * num_slots
        return torch.tensor([nothing, nothing, [self._store.scratch] * num_slots, list(range(num_slots))])

    def _captured(self, num_slots: int, num_places: int) -> _Pass:
        inputs_4S = self._idle(num_slots).to(self._backbone.device)
        segments = tuple(Segment(i, i + 1, True, slot=i, past=num_places - 1) for i in range(num_slots))

        def run() -> Tensor:
            ids_S, positions_S, places_S, keep_S = inputs_4S
            return self._backbone.logits(ids_S, positions_S, Plan(segments, store=self._store, places=places_S), keep_S)

        replay, logits_SV = self._capture(run)
        return _Pass(inputs_4S, logits_SV, replay)


class Graphs:
    """Captures CUDA graphs of one device, which share their memory: one runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], Any], Tensor]:
        with torch.cuda.device(self._device):  # what is captured, and in which order it runs, is of the current device
            graph, result = self._captured(run)

        def replay() -> None:
            with torch.cuda.device(self._device):
                graph.replay()

        return replay, result

    def _captured(self, run: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries make their workspaces at the first use, which cannot be captured
            run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # other threads may use the device meanwhile: their calls are none of this capture
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = run()
        self._pool = self._pool or graph.pool()
        return graph, result


def captured_steps(backbone: Backbone, store: SlotStore) -> CapturedSteps | None:
    """Those of a model that lies on one GPU as a whole; None for any other."""
    gpu = one_gpu({parameter.device for parameter in backbone.lm.parameters()})
    return None if gpu is None else CapturedSteps(backbone, store, Graphs(gpu))


def one_gpu(devices: Collection[torch.device]) -> torch.device | None:
    """The one device that there is, where it is a GPU: what runs elsewhere would be left out of a graph unnoticed."""
    return next(iter(devices)) if len(devices) == 1 and all(device.type == "cuda" for device in devices) else None


def _bucket(needed: int, least: int, most: int) -> int:
    """The next power of two, between the bounds."""
    return min(most, max(least, 1 << (needed - 1).bit_length()))
