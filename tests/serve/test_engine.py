"""The engine with many clients at once: each gets the library's own answer, and nobody's failure is another's."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gritkit.errors import GenerationError, InputError
from gritkit.generation.decoder import Decoder, Request
from gritkit.generation.params import Delta, Finished, SamplingParams
from gritkit.kv.dockv import DocKV
from gritkit.model import GritModel
from gritkit.tokens import TokenSeq
from gritkit_serve.engine import Engine, EngineFailed, EngineLimits, NotServing, Overloaded
from tests.models import TEXTS, VOCABULARY, grit_model

PATIENCE_S = 60.0


@asynccontextmanager
async def engine(model: GritModel | None = None, **limits: int) -> AsyncIterator[Engine]:
    running = Engine(model or grit_model("llama"), limits=EngineLimits(**limits))
    running.start()
    try:
        yield running
    finally:
        await asyncio.to_thread(running.stop, drain_s=5.0)


def run(test: Callable[[], Any]) -> Any:
    return asyncio.run(asyncio.wait_for(test(), PATIENCE_S))


def request(model: GritModel, text: str, new: int = 12, **params: Any) -> Request:
    return Request(model.tokens.raw_prompt(text), SamplingParams(max_new_tokens=new, **params))


def sequences(model: GritModel, texts: tuple[str, ...] = TEXTS) -> list[TokenSeq]:
    return model.tokens.to_embed(texts, "passage", None, 256, truncate=False)


async def until(holds: Callable[[], bool]) -> None:
    """The event loop turns until it does; the test's own time limit ends it."""
    while not holds():
        await asyncio.sleep(0.005)


# -- the same answers --------------------------------------------------------------------------------------------------


def test_all_kinds_of_work_at_once_give_the_librarys_answers() -> None:
    model = grit_model("llama")
    texts = [f"{text} {n}" for n in range(6) for text in TEXTS]
    vectors = model.embed(texts)
    completions = model.complete_batch(texts, max_new_tokens=12)
    scores = model.score(TEXTS[0], list(TEXTS[1:]))

    async def test() -> None:
        async with engine(model, slots=4, row_tokens=64) as one:
            generations = [one.generate(request(model, text)) for text in texts]
            embedded = [one.embed(sequences(model, (text,))) for text in texts]
            scored = [one.call(lambda: model.score(TEXTS[0], list(TEXTS[1:]))) for _ in range(4)]
            done = await asyncio.gather(*(g.result() for g in generations))
            rows = await asyncio.gather(*embedded)
            assert [c.token_ids for c in done] == [c.token_ids for c in completions]
            assert [c.text for c in done] == [c.text for c in completions]
            np.testing.assert_allclose(np.concatenate(rows), vectors, atol=2e-6)
            for got in await asyncio.gather(*scored):
                assert got == pytest.approx(scores, rel=1e-5)
            load = one.load()
            assert load.counts["finished"] == len(texts)
            assert load.counts["texts"] == len(texts)
            assert load.counts["completion_tokens"] == sum(len(c.token_ids) for c in completions)
            assert (load.running, load.waiting, load.waiting_tokens, load.calls) == (0, 0, 0, 0)
            assert all(seconds > 0 for seconds in load.seconds.values())

    run(test)


def test_events_are_the_librarys() -> None:
    model = grit_model("llama")
    expected = list(model.stream_complete(TEXTS[2], max_new_tokens=10))

    async def test() -> None:
        async with engine(model) as one:
            events = [event async for event in one.generate(request(model, TEXTS[2], 10))]
        assert [e.text for e in events if isinstance(e, Delta)] == [e.text for e in expected if isinstance(e, Delta)]
        assert isinstance(events[-1], Finished)
        assert isinstance(expected[-1], Finished)
        assert events[-1].completion == expected[-1].completion

    run(test)


def test_fewer_dimensions_are_normalised_again() -> None:
    model = grit_model("llama")

    async def test() -> None:
        async with engine(model) as one:
            vectors = await one.embed(sequences(model), dim=8)
            np.testing.assert_allclose(vectors, model.embed(TEXTS, dim=8), atol=2e-6)
            assert (await one.embed([])).shape == (0, model.dim)
            with pytest.raises(InputError, match="dim=33"):
                await one.embed(sequences(model), dim=33)

    run(test)


def test_passes_run_in_the_engines_thread_alone() -> None:
    model = grit_model("llama")
    threads = set()
    forward = model.lm.forward

    def watched(*given: Any, **options: Any) -> Any:
        threads.add(threading.current_thread().name)
        return forward(*given, **options)

    async def test() -> None:
        async with engine(model) as one:
            model.lm.forward = watched  # type: ignore[method-assign]
            model.lm.get_decoder().register_forward_pre_hook(
                lambda *_: threads.add(threading.current_thread().name)  # type: ignore[func-returns-value]
            )
            await asyncio.gather(
                one.generate(request(model, "a")).result(),
                one.embed(sequences(model)),
                one.call(lambda: model.embed("text")),
                one.call(lambda: model.complete("text", max_new_tokens=2)),
            )

    run(test)
    assert threads == {"gritkit-engine"}
    model.embed("after it has stopped, whoever asks runs the pass")
    assert len(threads) == 2


# -- leaving and refusing ----------------------------------------------------------------------------------------------


def test_a_client_that_leaves_frees_its_slot() -> None:
    model = grit_model("llama")

    async def test() -> None:
        async with engine(model, slots=1) as one:
            long = one.generate(request(model, TEXTS[0], 400))
            async for _ in long:
                break  # leaving the iteration early is leaving
            short = one.generate(request(model, TEXTS[1], 3))
            assert len((await short.result()).token_ids) <= 3
            await until(lambda: one.load().counts["cancelled"] == 1)

    run(test)


def test_a_client_that_leaves_the_queue_never_runs() -> None:
    model = grit_model("llama")

    async def test() -> None:
        async with engine(model, slots=1) as one:
            first = one.generate(request(model, TEXTS[0], 60))
            waiting = [one.generate(request(model, TEXTS[1])) for _ in range(3)]
            task = asyncio.ensure_future(waiting[0].result())
            await asyncio.sleep(0)
            task.cancel()
            waiting[1].cancel()
            await first.result()
            await waiting[2].result()
            assert one.load().counts["finished"] == 2

    run(test)


def test_a_cancelled_embedding_is_dropped() -> None:
    model = grit_model("llama")

    async def test() -> None:
        async with engine(model, row_tokens=32) as one:
            task = asyncio.ensure_future(one.embed(sequences(model) * 200))
            await until(lambda: one.load().waiting_tokens > 0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: one.load().waiting_tokens == 0)
            assert one.load().counts["texts"] < 200 * len(TEXTS)

    run(test)


def test_full_queues_refuse_and_say_when_to_come_again() -> None:
    model = grit_model("llama")

    async def test() -> None:
        gate = threading.Event()
        async with engine(model, slots=1, waiting_generations=2, waiting_tokens=40, workers=1, waiting_calls=1) as one:
            blocked = asyncio.ensure_future(one.call(gate.wait))
            await asyncio.sleep(0)
            with pytest.raises(Overloaded, match="1 calls") as error:
                await one.call(lambda: None)
            assert 1 <= error.value.retry_after_s <= 60
            generations = [one.generate(request(model, TEXTS[0], 300))]
            await until(lambda: one.load().running == 1)
            generations += [one.generate(request(model, TEXTS[0], 300)) for _ in range(2)]
            with pytest.raises(Overloaded, match="2 generations are waiting"):
                one.generate(request(model, TEXTS[0]))
            many = asyncio.ensure_future(one.embed(sequences(model) * 500))  # alone it may be as long as it likes
            await asyncio.sleep(0)
            with pytest.raises(Overloaded, match="tokens are waiting"):
                await one.embed(sequences(model))
            for generation in generations:
                generation.cancel()
            many.cancel()
            gate.set()
            await blocked

    run(test)


def test_what_does_not_fit_is_refused_at_once() -> None:
    model = grit_model("llama")

    async def test() -> None:
        async with engine(model, slot_tokens=16) as one:
            with pytest.raises(InputError, match="takes 1 to 16"):
                one.generate(Request([5] * 16))
            with pytest.raises(InputError, match="has 0 tokens"):
                one.generate(Request([]))
            with pytest.raises(InputError, match="adapter='x'"):
                one.generate(Request([5]), adapter="x")

    run(test)


# -- failing and ending ------------------------------------------------------------------------------------------------


def test_a_failing_pass_ends_its_requests_and_not_the_engine(caplog: pytest.LogCaptureFixture) -> None:
    model = grit_model("llama")
    broken = threading.Event()

    def fail(*_: Any) -> None:
        if broken.is_set():
            raise RuntimeError("the device is gone")

    async def test() -> None:
        async with engine(model, slots=1) as one:
            handle = model.lm.get_decoder().register_forward_pre_hook(fail)
            running = one.generate(request(model, TEXTS[0], 400))
            waiting = one.generate(request(model, TEXTS[1], 3))
            events = running.__aiter__()
            await anext(events)
            broken.set()
            with pytest.raises(EngineFailed, match="RuntimeError"):
                await running.result()
            await until(lambda: one.state == "failed")
            with pytest.raises(NotServing, match="failed"):
                one.generate(request(model, TEXTS[0]))
            broken.clear()
            await until(lambda: one.state == "ready")
            handle.remove()
            assert (await waiting.result()).text  # it had no part in the pass that failed
            assert (await one.generate(request(model, TEXTS[0], 3)).result()).text
            load = one.load()
            assert (load.failures, load.counts["failed"], load.counts["finished"]) == (1, 1, 2)

    run(test)


@dataclass(frozen=True)
class Lost(DocKV):
    """A document whose key-values cannot be had."""

    error: Exception = field(kw_only=True)

    def layer(self, index: int, device: torch.device) -> tuple[Tensor, Tensor]:
        raise self.error


@pytest.mark.parametrize(
    ("error", "end", "failures"),
    [(MemoryError(), EngineFailed, 1), (InputError("MemoryError, the client's own"), InputError, 0)],
)
def test_a_request_whose_documents_cannot_be_laid_has_an_end_too(
    error: Exception, end: type[Exception], failures: int
) -> None:
    model = grit_model("llama")
    _, (read,) = model.read(["one"])
    lost = Lost(read.ids, read.num_bos, read.num_prompt, read.keys, read.values, error=error)

    async def test() -> None:
        async with engine(model, slots=1) as one:
            with pytest.raises(end, match="MemoryError"):
                await one.generate(replace(request(model, TEXTS[0]), documents=[lost])).result()
            await until(lambda: one.load().failures == failures)
            await until(lambda: one.state == "ready")
            assert one.load().counts["failed"] == 1

    run(test)


class Watched(Engine):
    """Notes what its state becomes without its lock, when it may have become something else meanwhile."""

    unlocked: tuple[str, ...] = ()

    def __setattr__(self, name: str, value: Any) -> None:
        lock = self.__dict__.get("_wake")
        if name == "state" and lock is not None and not lock._is_owned():
            self.unlocked += (value,)
        super().__setattr__(name, value)


def test_its_state_changes_under_its_lock_and_recovering_is_no_escape_from_stopping(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = grit_model("llama")
    broken, recovered, gate = threading.Event(), threading.Event(), threading.Event()

    def fail(*_: Any) -> None:
        if broken.is_set():
            raise RuntimeError("the device is gone")
        if one.state == "failed":
            recovered.set()
            assert gate.wait(PATIENCE_S)

    one = Watched(model)

    async def test() -> None:
        one.start()
        broken.set()
        with pytest.raises(EngineFailed):
            await one.generate(request(model, TEXTS[0])).result()
        await until(lambda: one.state == "failed")
        broken.clear()
        await until(recovered.is_set)
        stopping = asyncio.ensure_future(asyncio.to_thread(one.stop, drain_s=30.0))
        await until(lambda: one.state == "draining")
        gate.set()
        await stopping
        assert one.state == "stopped"

    model.lm.get_decoder().register_forward_pre_hook(fail)
    run(test)
    assert one.unlocked == ()


class Ending:
    """A constraint that allows everything, and fails at its third token."""

    def __init__(self, error: Exception) -> None:
        self._error = error
        self._num_chosen = 0

    def allowed(self, size: int) -> Tensor:
        if self._num_chosen == 2:
            raise self._error
        return torch.ones(size, dtype=torch.bool)

    def chosen(self, token_id: int) -> None:
        self._num_chosen += 1


def test_a_generation_that_cannot_go_on_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    model = grit_model("llama")
    texts = [f"{text} {n}" for n in range(2) for text in TEXTS]
    expected = model.complete_batch(texts, max_new_tokens=12)
    used = {token for done in expected for token in done.token_ids}
    used |= {token for text in [*texts, "a"] for token in model.tokens.raw_prompt(text)}
    bad = min(set(range(50, VOCABULARY)) - used)
    with torch.no_grad():
        model.lm.get_input_embeddings().weight[bad] = float("nan")

    async def test() -> None:
        async with engine(model, slots=4) as one:
            own = one.generate(replace(request(model, TEXTS[0]), constraint=Ending(InputError("not of the grammar"))))
            defect = one.generate(replace(request(model, TEXTS[1]), constraint=Ending(KeyError("a secret"))))
            poisoned = one.generate(Request([*model.tokens.raw_prompt(TEXTS[2]), bad, 5]))
            generations = [one.generate(request(model, text)) for text in texts]
            ends = await asyncio.gather(*(g.result() for g in (own, defect, poisoned)), return_exceptions=True)
            assert [str(end) for end in ends] == [
                "not of the grammar",
                "the answer cannot be continued: KeyError",
                "the model's logits after 0 tokens of the answer are not finite",
            ]
            assert [type(end) for end in ends] == [InputError, GenerationError, GenerationError]
            done = await asyncio.gather(*(g.result() for g in generations))
            assert [c.token_ids for c in done] == [c.token_ids for c in expected]
            assert [c.text for c in done] == [c.text for c in expected]
            load = one.load()
            assert (load.state, load.failures, load.running, load.waiting) == ("ready", 0, 0, 0)
            assert (load.counts["failed"], load.counts["finished"]) == (3, len(texts))

    with caplog.at_level(logging.ERROR, "gritkit.serve"):
        run(test)
    logged = {record.getMessage(): record.exc_info[0] for record in caplog.records if record.exc_info}
    assert logged == {
        "a generation failed: the answer cannot be continued: KeyError": KeyError,
        "a generation failed: the model's logits after 0 tokens of the answer are not finite": GenerationError,
    }


def test_a_call_raises_its_own_error_and_harms_nobody() -> None:
    model = grit_model("llama")

    async def test() -> None:
        async with engine(model) as one:
            generation = one.generate(request(model, TEXTS[0], 40))
            with pytest.raises(InputError, match="empty"):
                await one.call(lambda: model.embed(""))
            with pytest.raises(ZeroDivisionError):
                await one.call(lambda: 1 / 0)
            await generation.result()
            assert one.load().failures == 0

    run(test)


def test_stopping_finishes_what_is_there_and_takes_nothing_new() -> None:
    model = grit_model("llama")

    async def test() -> None:
        async with engine(model, slots=2) as one:
            generations = [one.generate(request(model, text, 30)) for text in TEXTS]
            stopping = asyncio.ensure_future(asyncio.to_thread(one.stop, drain_s=30.0))
            await until(lambda: one.state != "ready")
            with pytest.raises(NotServing, match="draining"):
                one.generate(request(model, TEXTS[0]))
            done = await asyncio.gather(*(g.result() for g in generations))
            assert all(c.finish_reason in ("length", "stop") for c in done)
            await stopping
            assert one.state == "stopped"

    run(test)


def test_stopping_finishes_what_is_just_joining(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits no more and runs not yet, while its documents are laid."""
    model = grit_model("llama")
    joining, gate = threading.Event(), threading.Event()
    join = Decoder.join

    def slow(self: Decoder, *given: Any) -> int:
        joining.set()
        assert gate.wait(PATIENCE_S)
        return join(self, *given)

    async def test() -> None:
        async with engine(model) as one:
            monkeypatch.setattr(Decoder, "join", slow)
            generation = one.generate(request(model, TEXTS[0], 3))
            await until(joining.is_set)
            stopping = asyncio.ensure_future(asyncio.to_thread(one.stop, drain_s=30.0))
            await until(lambda: one.state == "draining")
            with one._wake:  # stop() has looked for what is there to finish
                gate.set()
            assert (await generation.result()).text
            await stopping

    run(test)


def test_stopping_while_the_model_fails_waits_for_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The turn that failed is over, and what it ran has ended."""
    model = grit_model("llama")

    def fail(*_: Any) -> None:
        raise RuntimeError("the device is gone")

    async def test() -> None:
        async with engine(model) as one:
            model.lm.get_decoder().register_forward_pre_hook(fail)
            with pytest.raises(EngineFailed):
                await one.generate(request(model, TEXTS[0])).result()
            await until(lambda: one.state == "failed")
            await asyncio.to_thread(one.stop, drain_s=10 * PATIENCE_S)

    run(test)


def test_stopping_ends_what_takes_too_long() -> None:
    model = grit_model("llama")

    async def test() -> None:
        async with engine(model, slots=1) as one:
            generations = [one.generate(request(model, text, 490)) for text in TEXTS]
            texts = asyncio.ensure_future(one.embed(sequences(model) * 500))
            await until(lambda: one.load().running == 1)
            await asyncio.to_thread(one.stop, drain_s=0.0)
            ends = await asyncio.gather(*(g.result() for g in generations), texts, return_exceptions=True)
            assert all(isinstance(end, NotServing) for end in ends)
            assert one.load().counts["failed"] == len(generations)

    run(test)


def test_a_call_that_outlives_the_engine_has_no_more_passes_anywhere() -> None:
    """What it asks for is refused; the model is everybody's own again when the last such call has ended."""
    model = grit_model("llama")
    threads = []
    inside, gates = [threading.Event() for _ in range(2)], [threading.Event() for _ in range(2)]

    def work(index: int) -> None:
        inside[index].set()
        assert gates[index].wait(PATIENCE_S)
        model.embed(TEXTS[index])

    async def test() -> None:
        async with engine(model, workers=2) as one:
            calls = [asyncio.ensure_future(one.call(partial(work, index))) for index in range(2)]
            await until(lambda: all(event.is_set() for event in inside))
            await asyncio.to_thread(one.stop, drain_s=0.0)
            assert one.state == "stopped"
            model.lm.get_decoder().register_forward_pre_hook(lambda *_: threads.append(threading.current_thread()))
            for index, call in enumerate(calls):
                gates[index].set()
                with pytest.raises(NotServing, match="has stopped"):
                    await call
            assert not threads
            model.embed(TEXTS[0])
            assert threads == [threading.current_thread()]

    run(test)


def test_everything_is_counted_from_nought() -> None:
    """A figure that is not there yet cannot be told from one that is not kept."""
    counts = Engine(grit_model("llama")).load().counts
    assert set(counts.values()) == {0}
    generations = {"finished", "failed", "cancelled", "prompt_tokens", "cached_tokens", "completion_tokens"}
    assert set(counts) == generations | {"texts", "tokens", "rows"}


def test_one_that_left_while_it_waited_is_counted_as_that_at_the_end_too() -> None:
    model = grit_model("llama")

    async def test() -> None:
        async with engine(model, slots=1) as one:
            await one.generate(request(model, TEXTS[0], 3)).result()
            with one._wake:  # the engine's thread cannot look before it has to stop
                one.generate(request(model, TEXTS[0])).cancel()
                one._ending = True
            await asyncio.to_thread(one.stop, drain_s=0.0)
            counts = one.load().counts
            assert (counts["cancelled"], counts["failed"], counts["finished"]) == (1, 0, 1)

    run(test)


# -- adapters and limits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["slots", "row_tokens", "workers"])
def test_limits_are_at_least_one(name: str) -> None:
    with pytest.raises(InputError, match=f"{name}=0"):
        EngineLimits(**{name: 0})
