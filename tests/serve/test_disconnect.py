"""A client that goes away takes its work with it: the slot is free for others, whatever it was waiting for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.models import grit_model
from tests.serve.serving import PATIENCE_S, Running, serving
from tests.serve.talking import asking, post, running, until

USER = [{"role": "user", "content": "the quick brown fox"}]
ENDLESS: dict[str, Any] = {"messages": USER, "temperature": 0, "max_tokens": 400}
WITHIN_S = 5.0
"""Of a slot's release; a step takes milliseconds, and other processes may have the cores."""


@pytest.fixture(scope="module")
def narrow() -> Iterator[Running]:
    """A server with one slot, whose passes can be held up."""
    with serving(grit_model("llama", prompt_format="grit"), slots=1) as running:
        yield running


class Held:
    """The model's passes wait while it is held: a client can leave at a moment that a test chooses."""

    def __init__(self, server: Running) -> None:
        self._backbone = server.service.model._backbone
        self._run = self._backbone.run
        self.free = threading.Event()
        self.waiting = threading.Event()

    def __enter__(self) -> Held:
        run = self._run
        assert run is not None

        def held(forward: Callable[[], Any]) -> Any:
            self.waiting.set()
            assert self.free.wait(PATIENCE_S)
            return run(forward)

        self._backbone.run = held
        return self

    def __exit__(self, *_: object) -> None:
        self.free.set()
        self._backbone.run = self._run


def idle(server: Running) -> bool:
    load = server.service.engine.load()
    return load.running == load.waiting == load.calls == load.waiting_tokens == 0


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("stream", [True, False])
def test_while_it_decodes(narrow: Running, path: str, stream: bool) -> None:
    body = ENDLESS if "chat" in path else {"prompt": "a", "temperature": 0, "max_tokens": 400}
    before = narrow.service.engine.load().counts.get("cancelled", 0)
    with asking(narrow, path, {**body, "stream": stream}) as connection:
        if stream:
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        assert until(lambda: running(narrow), PATIENCE_S)
    assert until(lambda: idle(narrow), WITHIN_S)
    cancelled = before + 1  # counted when the slot is free already
    assert until(lambda: narrow.service.engine.load().counts.get("cancelled", 0) == cancelled, PATIENCE_S)


@pytest.mark.parametrize("stream", [True, False])
def test_while_it_waits_for_a_slot(narrow: Running, stream: bool) -> None:
    with asking(narrow, "/v1/chat/completions", ENDLESS):
        assert until(lambda: running(narrow), PATIENCE_S)
        with asking(narrow, "/v1/chat/completions", {**ENDLESS, "stream": stream, "n": 3}):
            assert until(lambda: narrow.service.engine.load().waiting == 3, PATIENCE_S)
        assert until(lambda: narrow.service.engine.load().waiting == 0, WITHIN_S)
        assert running(narrow)
    assert until(lambda: idle(narrow), WITHIN_S)


@pytest.mark.parametrize("stream", [True, False])
def test_before_the_first_token(narrow: Running, stream: bool) -> None:
    with Held(narrow) as held, asking(narrow, "/v1/chat/completions", {**ENDLESS, "stream": stream}) as connection:
        assert held.waiting.wait(PATIENCE_S)
        connection.close()
        held.free.set()
        assert until(lambda: idle(narrow), WITHIN_S)


def test_while_texts_wait_to_be_embedded(narrow: Running) -> None:
    texts = ["the quick brown fox jumps over the lazy dog " * 5] * 500
    before = narrow.service.engine.load().counts.get("texts", 0)
    with Held(narrow) as held, asking(narrow, "/v1/embeddings", {"input": texts}) as connection:
        assert held.waiting.wait(PATIENCE_S)
        connection.close()
        held.free.set()
        assert until(lambda: idle(narrow), PATIENCE_S)
    assert narrow.service.engine.load().counts.get("texts", 0) - before < len(texts) / 2


def test_while_documents_are_scored(narrow: Running) -> None:
    documents = ["the quick brown fox jumps over the lazy dog " * 5] * 500
    passes: list[int] = []
    decoder = narrow.service.model.lm.get_decoder()
    with Held(narrow) as held, asking(narrow, "/v1/rerank", {"query": "fox", "documents": documents}) as connection:
        assert held.waiting.wait(PATIENCE_S)
        connection.close()
        assert until(lambda: narrow.service.gate.inside == 0, PATIENCE_S)
        hook = decoder.register_forward_pre_hook(lambda *_: passes.append(1))
        held.free.set()
        assert until(lambda: idle(narrow), PATIENCE_S)
    hook.remove()
    assert len(passes) <= 1


def test_others_notice_nothing(narrow: Running) -> None:
    with narrow.client() as client:
        expected = post(client, "/v1/chat/completions", messages=USER, temperature=0, max_tokens=8)
        for stream in (True, False):
            with asking(narrow, "/v1/chat/completions", {**ENDLESS, "stream": stream}):
                assert until(lambda: running(narrow), PATIENCE_S)
            answer = post(client, "/v1/chat/completions", messages=USER, temperature=0, max_tokens=8)
            assert answer["choices"] == expected["choices"]
    assert until(lambda: narrow.service.gate.inside == 0, WITHIN_S)
