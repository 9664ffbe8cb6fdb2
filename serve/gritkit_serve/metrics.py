"""What Prometheus reads at /metrics, in a registry of the server's own.

Labels have few values: route templates, status codes, fixed words; never a name that a client chose. This module knows
nothing about requests or engines; what an engine counts is read from it when Prometheus asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from gritkit.rag import AddReport
    from gritkit_serve.engine import Load

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
FIRST_TOKEN_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BETWEEN_TOKENS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """The counters that the server and its routes write to."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "gritkit_requests", "Requests that have ended.", ("route", "method", "status"), registry=registry
        )
        self.request_seconds = Histogram(
            "gritkit_request_seconds", "From a request's headers to the end of its answer.", ("route",),
            registry=registry, buckets=REQUEST_SECONDS,
        )  # fmt: skip
        self.in_flight = Gauge("gritkit_requests_in_flight", "Requests being worked on.", registry=registry)
        self.first_token = Histogram(
            "gritkit_first_token_seconds", "From a request's headers to its first piece of text.", ("route",),
            registry=registry, buckets=FIRST_TOKEN_SECONDS,
        )  # fmt: skip
        self.between_tokens = Histogram(
            "gritkit_between_tokens_seconds", "Between two pieces of text of one answer.", ("route",),
            registry=registry, buckets=BETWEEN_TOKENS_SECONDS,
        )  # fmt: skip
        self.tokens = Counter(
            "gritkit_tokens", "Tokens: prompt (read, cached ones included), cached, completion (written).",
            ("route", "kind"), registry=registry,
        )  # fmt: skip
        self.kb_documents = Counter(
            "gritkit_kb_documents", "Documents by what became of them: added, updated, skipped, failed, deleted.",
            ("outcome",), registry=registry,
        )  # fmt: skip
        self.kb_searches = Counter(
            "gritkit_kb_searches", "Searches by kind: dense, text, hybrid.", ("by",), registry=registry
        )
        self.kb_answers = Counter(
            "gritkit_kb_answers", "Answers from documents by the way of reuse that was taken.", ("reuse",),
            registry=registry,
        )  # fmt: skip

    def ended(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests.labels(route, method if method in METHODS else "other", str(status)).inc()
        self.request_seconds.labels(route).observe(seconds)

    def count_added(self, report: AddReport) -> None:
        """Count what became of documents that were to be added."""
        for outcome in ("added", "updated", "skipped", "failed"):
            self.kb_documents.labels(outcome).inc(getattr(report, outcome))

    def watch(self, read: Callable[[], Iterable[Metric]]) -> None:
        """Ask ``read`` for further figures whenever Prometheus asks."""
        self.registry.register(_Read(read))

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)


class _Read(Collector):
    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        return self._read()

    def describe(self) -> Iterable[Metric]:
        return ()  # nothing is read at registration, when there may be nothing to read yet


def of_load(load: Load) -> Iterable[Metric]:
    """The engine's figures, for :meth:`Metrics.watch`."""
    yield _gauge("gritkit_engine_ready", "1 when the engine takes work.", float(load.state == "ready"))
    generations = {"running": load.running, "waiting": load.waiting}
    yield _by(GaugeMetricFamily, "gritkit_engine_generations", "Generations by state.", "state", generations)
    yield _gauge("gritkit_engine_waiting_tokens", "Of texts that wait to be embedded.", load.waiting_tokens)
    yield _gauge("gritkit_engine_calls", "Library calls that run or wait for a thread.", load.calls)
    failures = CounterMetricFamily("gritkit_engine_failures", "Passes that failed for no request's own reason.")
    failures.add_metric((), load.failures)
    yield failures
    yield _by(CounterMetricFamily, "gritkit_engine_work", "What the engine has done.", "kind", load.counts)
    yield _by(CounterMetricFamily, "gritkit_engine_device_seconds", "Device time by work.", "work", load.seconds)


def of_reads(counts: Mapping[str, int]) -> Iterable[Metric]:
    """The figures of all knowledge bases, open or not any more."""
    reads = {tier: counts.get(tier, 0) for tier in ("device", "memory", "disk", "lost")}
    yield _by(CounterMetricFamily, "gritkit_kb_reads", "Documents' key-values by where they were.", "tier", reads)


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help, value=value)


def _by(
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
    name: str,
    help: str,
    label: str,
    values: Mapping[str, float],
) -> Metric:
    family = kind(name, help, labels=(label,))
    for value, figure in values.items():
        family.add_metric((value,), figure)
    return family
