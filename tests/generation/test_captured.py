"""Captured decode steps, with passes that are run again instead of replayed: everything but the graphs themselves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from gritkit.backbone import Backbone
from gritkit.generation import captured
from gritkit.generation.captured import CapturedSteps
from gritkit.generation.decoder import Decoder, Request
from gritkit.generation.params import Finished, SamplingParams
from gritkit.kv.slots import SlotStore
from gritkit.plan import Plan, Segment
from tests.models import ARCHITECTURES, grit_model, shared_model

PLACES = 40


def run_again(run: Callable[[], Tensor]) -> tuple[Callable[[], Any], Tensor]:
    result = run()
    return lambda: result.copy_(run()), result


def filled(backbone: Backbone, pasts: dict[int, int]) -> SlotStore:
    """A store whose slots hold so many tokens each, read one prompt after the other."""
    store = SlotStore(6, PLACES)
    for slot, past in pasts.items():
        if past:
            ids = torch.arange(past) * 7 % 50 + 3
            plan = Plan((Segment(0, past, True, slot=slot),), store=store)
            backbone.logits(ids, torch.arange(past), plan, torch.tensor([past - 1]))
    return store


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.inference_mode()
def test_captured_steps_equal_plain_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in any slots, idle slots among them, of any length; step after step, from one size into the next."""
    monkeypatch.setattr(captured, "_UNCAPTURED", 0)
    monkeypatch.setattr(captured, "_LEAST_PLACES", 8)
    backbone = Backbone(shared_model(name).lm)
    pasts = {0: 0, 1: 13, 4: 5, 2: 7}
    ours, plain = filled(backbone, pasts), filled(backbone, pasts)
    steps = CapturedSteps(backbone, ours, run_again)
    for number in range(8):
        active = [slot for slot in pasts if number < 3 or slot != 4]  # slot 4 is idle from some time on
        rows = [(slot, 5 + number + slot, pasts[slot]) for slot in active]
        segments = tuple(Segment(i, i + 1, True, slot=slot, past=past) for i, (slot, _, past) in enumerate(rows))
        expected = backbone.logits(
            torch.tensor([token for _, token, _ in rows]),
            torch.tensor([past for _, _, past in rows]),
            Plan(segments, store=plain),
            torch.arange(len(rows)),
        )
        found = steps.logits(rows)
        assert found is not None
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        for slot in active:
            pasts[slot] += 1
    assert set(steps._passes) == {(6, 16), (4, 32)}
    for slot, past in pasts.items():  # idle slots have not been written to
        for one, other in zip(ours.get(0, slot, 0, past), plain.get(0, slot, 0, past), strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_decoder_captures_what_comes_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured, "_UNCAPTURED", 2)
    model = shared_model("llama")
    requests = [Request(list(range(5, 5 + length)), SamplingParams(max_new_tokens=14)) for length in (3, 9)]

    def decode(capture: bool) -> list[tuple[int, ...]]:
        rows = model.decoder(num_slots=3, max_length=PLACES)
        if capture:
            rows._captured = CapturedSteps(rows._backbone, rows._store, run_again)
        for request in requests:
            rows.join(request)
        done = {event.row: event.completion for event in rows.run() if isinstance(event, Finished)}
        if capture:
            assert rows._captured is not None
            assert rows._captured._passes
        return [done[row].token_ids for row in sorted(done)]

    assert decode(True) == decode(False)


def test_steps_are_captured_and_replayed_in_the_thread_that_runs_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is another's than the decoder's in a server; a graph records the launches of its own thread alone."""
    monkeypatch.setattr(captured, "_UNCAPTURED", 2)
    model = grit_model("llama")
    request = Request([5, 6, 7], SamplingParams(max_new_tokens=12))
    (expected,) = model.generate([request])
    threads: dict[str, set[threading.Thread]] = {"recorded": set(), "replayed": set(), "launched": set()}

    def watched(run: Callable[[], Tensor]) -> tuple[Callable[[], Any], Tensor]:
        again, result = run_again(run)
        threads["recorded"].add(threading.current_thread())

        def replay() -> None:
            threads["replayed"].add(threading.current_thread())
            again()

        return replay, result

    model.lm.register_forward_pre_hook(lambda *_: threads["launched"].add(threading.current_thread()))
    with ThreadPoolExecutor(1) as pool:
        owner = pool.submit(threading.current_thread).result()

        def run(forward: Callable[[], Any]) -> Any:
            if threading.current_thread() is owner:
                return forward()
            return pool.submit(torch.inference_mode()(forward)).result()

        model.run_passes(run)
        rows = model.decoder(num_slots=2, max_length=PLACES)
        rows._captured = CapturedSteps(rows._backbone, rows._store, watched)
        rows.join(request)
        (done,) = [event.completion for event in rows.run() if isinstance(event, Finished)]
    assert done == expected
    assert threads == {"recorded": {owner}, "replayed": {owner}, "launched": {owner}}


def test_a_model_that_cannot_be_captured_decodes_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(captured, "_UNCAPTURED", 0)

    def refuse(run: Callable[[], Tensor]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    model = shared_model("llama")
    rows: Decoder = model.decoder(num_slots=2, max_length=PLACES)
    rows._captured = CapturedSteps(rows._backbone, rows._store, refuse)
    request = Request([5, 6, 7], SamplingParams(max_new_tokens=6))
    rows.join(request)
    (done,) = [event.completion for event in rows.run() if isinstance(event, Finished)]
    assert done == model.generate([request])[0]
    assert caplog.text.count("cannot be captured") == 1


def test_only_a_model_on_one_gpu_is_captured() -> None:
    first, second, cpu = map(torch.device, ("cuda:0", "cuda:1", "cpu"))
    assert captured.one_gpu({second}) == second
    for devices in ({cpu}, {first, second}, {first, cpu}):
        assert captured.one_gpu(devices) is None
    assert captured.captured_steps(Backbone(shared_model("llama").lm), SlotStore(1, PLACES)) is None
