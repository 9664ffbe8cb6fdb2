"""Threads of the engine for library code: none stands in another's way, and none goes on for nobody."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch

from gritkit_serve.engine import Overloaded
from gritkit_serve.engine.errors import Abandoned
from gritkit_serve.engine.workers import Kind
from tests.models import TEXTS, grit_model
from tests.serve.test_engine import PATIENCE_S, engine, request, run, until


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_kind_that_is_all_at_work_holds_up_no_other(kind: Kind) -> None:
    async def test() -> None:
        gate = threading.Event()
        async with engine(workers=1, base_workers=1, score_workers=1, waiting_calls=2) as one:
            held = [asyncio.ensure_future(one.call(gate.wait, kind=kind)) for _ in range(2)]
            await asyncio.sleep(0)
            for other in get_args(Kind):
                if other == kind:
                    with pytest.raises(Overloaded, match="2 calls are waiting"):
                        await one.call(lambda: None, kind=kind)
                else:
                    assert await one.call(lambda: 7, kind=other) == 7
            assert one.load().calls == 2
            gate.set()
            await asyncio.gather(*held)

    run(test)


def test_a_chat_begins_while_documents_are_scored() -> None:
    model = grit_model("llama")
    documents = list(TEXTS) * 40

    async def test() -> None:
        async with engine(model) as one:
            flood = [
                asyncio.ensure_future(one.call(lambda: model.score(TEXTS[0], documents), kind="scores"))
                for _ in range(16)
            ]
            await until(lambda: one.load().seconds["passes"] > 0)
            asked = await one.call(lambda: request(model, TEXTS[1]))
            await one.generate(asked).result()
            assert not any(call.done() for call in flood)
            for call in flood:
                call.cancel()

    run(test)


def test_what_nobody_waits_for_ends_at_its_next_pass() -> None:
    model = grit_model("llama")
    inside, gate, ended = threading.Event(), threading.Event(), threading.Event()
    ends: list[Any] = []

    def work() -> None:
        inside.set()
        assert gate.wait(PATIENCE_S)
        try:
            model.score(TEXTS[0], TEXTS)
        except Abandoned as error:
            ends.append(error)
        ended.set()

    async def test() -> None:
        async with engine(model) as one:
            call = asyncio.ensure_future(one.call(work, kind="scores"))
            await until(inside.is_set)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            passes = one.load().seconds["passes"]
            gate.set()
            await until(ended.is_set)
            assert len(ends) == 1
            assert one.load().seconds["passes"] == passes
            assert await one.call(lambda: model.score(TEXTS[0], TEXTS), kind="scores")  # the thread is as before

    run(test)


def test_what_nobody_waits_for_and_no_thread_has_begun_never_begins() -> None:
    begun: list[int] = []

    async def test() -> None:
        gate = threading.Event()
        async with engine(score_workers=1) as one:
            held = asyncio.ensure_future(one.call(gate.wait, kind="scores"))
            waiting = asyncio.ensure_future(one.call(lambda: begun.append(1), kind="scores"))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            gate.set()
            await held
            await one.call(lambda: None, kind="scores")
            assert not begun

    run(test)


@pytest.fixture
def two_cores() -> Iterator[None]:
    """What torch takes the machine for."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize("kind", get_args(Kind))
def test_the_engine_has_the_cores_and_a_worker_one(kind: Kind) -> None:
    model = grit_model("llama")
    found: list[int] = []
    model.lm.get_decoder().register_forward_pre_hook(lambda *_: found.append(torch.get_num_threads()))

    async def test() -> None:
        async with engine(model) as one:
            assert await one.call(torch.get_num_threads, kind=kind) == 1
            found.clear()
            await one.call(lambda: model.embed(TEXTS[0]), kind=kind)
            await one.generate(request(model, TEXTS[0], 2)).result()
            assert set(found) == {2}

    run(test)
