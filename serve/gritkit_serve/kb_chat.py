"""A chat that is answered from a knowledge base: the last message of the user is the question.

The search goes by that question alone; the model reads the documents, then the conversation, then the question.

    retrieved = await retrieve_for_chat(service, kb, messages, params, adapter=adapter)
    retrieved.request        for the engine, as of any chat
    retrieved.sources()      what the first chunk of a stream says
    retrieved.outcome(call)  what the last one says; retrieved.whole(call) is both

This module knows nothing about HTTP messages, or about how documents are found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gritkit.generation.decoder import Request
from gritkit.generation.params import SamplingParams
from gritkit.prompts import Message
from gritkit_serve.calls import Call
from gritkit_serve.errors import ParameterError
from gritkit_serve.kb_answers import Finding, Ready, sources_of
from gritkit_serve.schemas.kb import ChatKb, ChatSources
from gritkit_serve.service import Service


@dataclass(frozen=True)
class Retrieved:
    """Passages, and the request that is answered from them."""

    ready: Ready

    @property
    def request(self) -> Request:
        return self.ready.request

    def sources(self) -> ChatSources:
        """What the answer will be read from."""
        found = sources_of(self.ready.question)
        return ChatSources(sources=found.sources, dropped=found.dropped)

    def outcome(self, call: Call) -> ChatSources:
        """How it came about, once the answer is whole."""
        return ChatSources(**self._outcome(call))

    def whole(self, call: Call) -> ChatSources:
        """Both, for an answer that does not stream."""
        found = sources_of(self.ready.question)
        return ChatSources(sources=found.sources, dropped=found.dropped, **self._outcome(call))

    def _outcome(self, call: Call) -> dict[str, Any]:
        prepared = self.ready.prepared
        return {
            "reuse": prepared.way.reuse,
            "reason": prepared.way.reason,
            "recomputed": prepared.recomputed,
            "timings": self.ready.timings(call),
        }


async def retrieve_for_chat(
    service: Service, kb: ChatKb, messages: Sequence[Message], params: SamplingParams, *, adapter: str | None = None
) -> Retrieved:
    """The request of a chat, its documents loaded.

    Raises:
        ParameterError: for a chat that does not end with the user, or an adapter that is to read the plain model's
            key-values. What :meth:`Bases.read <gritkit_serve.bases.Bases.read>` and :meth:`Rag.find
            <gritkit.rag.Rag.find>` raise.
    """
    kb.check(service.settings)
    if messages[-1]["role"] != "user":
        raise ParameterError("a chat with kb must end with the user's message, the question", param="messages")
    if adapter is not None and kb.reuse not in (None, "auto", "off"):
        raise ParameterError(
            f"reuse={kb.reuse!r} starts from what the base model has read, and {adapter!r} is another: use 'off'",
            param="kb.reuse",
        )
    wanted = kb if adapter is None else kb.model_copy(update={"reuse": "off"})
    finding = Finding(service, kb.name, messages[-1]["content"], wanted, params, earlier=messages[:-1])
    try:
        return Retrieved(await finding.ready())
    finally:
        finding.close()
