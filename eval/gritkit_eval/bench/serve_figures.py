"""What came back from the servers -> the figures of ``bench serve``, and whether their answers are the same.

This module knows nothing about processes, HTTP or tables.
"""

from __future__ import annotations

import base64
import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gritkit.errors import GritkitError
from gritkit_eval.bench.harness import Timing
from gritkit_eval.bench.serve_servers import Memory

TIES = {"float32": 1e-3, "bfloat16": 0.1}
"""Nats by which a token may be ahead of the next likeliest and yet lose to it in another order of summing."""
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}
"""Largest difference of a vector's component that still counts as the same output."""

Expected = Sequence[tuple[str, float]]
"""The tokens of a greedy answer, each with how far ahead of the second likeliest it was."""


# -- the same answers --------------------------------------------------------------------------------------------------


def is_same_text(text: str, expected: Expected, tie: float) -> bool:
    """Whether the text is the expected one. False where it leaves it at a near-tie.

    Raises:
        GritkitError: where it leaves it anywhere else.
    """
    at = 0
    for number, (token, ahead) in enumerate(expected):
        if text[at : at + len(token)] != token:
            if ahead <= tie:
                return False
            raise GritkitError(
                f"an answer leaves the library's at token {number}, which was {ahead:.1e} nats ahead: "
                f"{text[at : at + 20]!r} instead of {token!r}"
            )
        at += len(token)
    if at != len(text):
        raise GritkitError(f"an answer goes on after the library's end with {text[at : at + 20]!r}")
    return True


def vectors_of(requests: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
    """[texts, dim] of base64 answers."""
    return np.array(
        [np.frombuffer(base64.b64decode(one), dtype="<f4") for request in requests for one in request["vectors"]]
    )


# -- figures -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """Seconds of many events."""

    p50: float
    p95: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        p50, p95 = np.percentile(np.array(seconds), [50, 95])
        return cls(float(p50), float(p95))


@dataclass(frozen=True)
class ChatRow:
    """One server with so many clients."""

    server: str
    clients: int
    requests: int
    """Of one round."""
    tokens: int
    """Of one round's answers."""
    timing: Timing
    first: Spread
    """From a request to the first text of its answer."""
    between: Spread
    """Between two texts of one answer."""

    @property
    def throughput(self) -> float:
        """Tokens a second."""
        return self.tokens / self.timing.median


def chat_row(server: str, clients: int, rounds: Sequence[Mapping[str, Any]], tokens: int) -> ChatRow:
    """Of what the client saved in every counted round. Raises GritkitError for answers of another length."""
    requests = [request for made in rounds for request in made["requests"]]
    for made in rounds:
        written = sum(request["tokens"] for request in made["requests"])
        if written != tokens:
            raise GritkitError(f"{server}: {written} tokens instead of {tokens}, so no figure counts")
    between = [b - a for one in requests for a, b in itertools.pairwise(one["times"])]
    return ChatRow(
        server, clients, len(rounds[0]["requests"]), tokens, Timing(tuple(made["seconds"] for made in rounds)),
        Spread.of([one["times"][0] - one["sent"] for one in requests]), Spread.of(between),
    )  # fmt: skip


@dataclass(frozen=True)
class EmbedRow:
    """One server with so many clients that send so many texts at once."""

    server: str
    clients: int
    texts: int
    tokens: int
    """Of one round."""
    timing: Timing
    latency: Spread
    """Of a request."""

    @property
    def throughput(self) -> float:
        """Tokens a second."""
        return self.tokens / self.timing.median


def embed_row(server: str, clients: int, texts: int, rounds: Sequence[Mapping[str, Any]], tokens: int) -> EmbedRow:
    """Of what the client saved in every counted round."""
    timing = Timing(tuple(made["seconds"] for made in rounds))
    latency = Spread.of([request["seconds"] for made in rounds for request in made["requests"]])
    return EmbedRow(server, clients, texts, tokens, timing, latency)


@dataclass(frozen=True)
class GapRow:
    """A running stream while a long prompt is read."""

    server: str
    usual: float
    """Median seconds between two texts of the stream before the prompt came."""
    longest: tuple[float, ...]
    """Longest seconds without a text while it was read, by round."""
    prefill: tuple[float, ...]
    """Seconds to the first text of a prompt of the same length with nothing beside it, by round."""
    beside: tuple[float, ...]
    """The same beside the stream."""

    @property
    def ratio(self) -> float:
        """The median of the longest gap over the prefill's own time."""
        return statistics.median(gap / own for gap, own in zip(self.longest, self.prefill, strict=True))


def gap_row(server: str, rounds: Sequence[Mapping[str, Any]]) -> GapRow:
    """Of what the client saved in every counted round. Raises GritkitError for a stream that ended too early."""
    longest, usual, prefill, beside = [], [], [], []
    for made in rounds:
        times, sent, first = made["running"]["times"], made["beside"]["sent"], made["beside"]["times"][0]
        if not times[0] < sent < first < times[-1]:
            raise GritkitError(f"{server}: the stream did not last as long as the prompt was read, so no figure counts")
        pairs = list(itertools.pairwise(times))
        longest.append(max(b - a for a, b in pairs if b >= sent and a <= first))
        usual += [b - a for a, b in pairs if b < sent]
        prefill.append(made["alone"]["times"][0] - made["alone"]["sent"])
        beside.append(first - sent)
    return GapRow(server, statistics.median(usual), tuple(longest), tuple(prefill), tuple(beside))


@dataclass(frozen=True)
class AskRow:
    """Answers from a knowledge base."""

    who: str
    first: tuple[float, ...]
    """Seconds to the first text, round by round and question by question."""

    @property
    def spread(self) -> Spread:
        return Spread.of(self.first)

    def ratio_to(self, other: AskRow) -> float:
        """The median of the ratios, question by question."""
        return statistics.median(a / b for a, b in zip(self.first, other.first, strict=True))


@dataclass(frozen=True)
class MemoryRow:
    """Processes that do a job together."""

    what: str
    memory: Memory
