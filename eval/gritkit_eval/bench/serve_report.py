"""The section of ``bench serve``: figures in tables, and the targets beside them, reached or missed.

This module knows nothing about how anything is measured.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

from gritkit_eval.bench.report import machine, section, table, title_of
from gritkit_eval.bench.serve import TITLE, Report
from gritkit_eval.bench.serve_figures import ChatRow, EmbedRow, Spread

_MIB = 1 << 20
_RATIOS = (
    "Ratios of times are medians of the ratios round by round, and question by question of answers from documents: not "
    "the ratios of the medians that stand beside them."
)


@dataclass(frozen=True)
class Target:
    """Something to reach."""

    what: str
    bound: float
    at_least: bool
    figure: float | None
    """None: it was not measured."""

    @property
    def verdict(self) -> str:
        if self.figure is None:
            return "not measured"
        reached = self.figure >= self.bound if self.at_least else self.figure <= self.bound
        return "reached" if reached else "**missed**"


def targets(report: Report) -> list[Target]:
    """Those for a CPU. Chats are against each way to serve them; embeddings against the faster way, memory against the
    smaller pair."""
    gap = next((row.ratio for row in report.gaps if row.server == "gritkit"), None)
    totals = {row.what: row.memory.total for row in report.memory}
    ours = next((total for what, total in totals.items() if what.endswith("both jobs")), None)
    pairs = [total for what, total in totals.items() if not what.startswith("gritkit")]
    asks = report.asks[0].ratio_to(report.asks[1]) if len(report.asks) == 2 else None
    peers = dict.fromkeys(row.server for row in report.chats if row.server != "gritkit") or ["a peer"]
    return [
        *(
            Target(
                f"chat throughput at {clients} client{'s' * (clients > 1)}, times that of {peer}", bound, True,
                _faster([row for row in _at(report.chats, clients) if row.server in ("gritkit", peer)]),
            )
            for clients, bound in ((8, 1.7), (1, 1.0))
            for peer in peers
        ),
        Target(f"longest gap beside a prompt of {report.long_tokens} tokens, of its prefill", 0.2, False, gap),
        *(
            Target(
                f"embeddings throughput at 8 clients, {texts} a request, times the peer's", 1.5, True,
                _faster(_at([row for row in report.embeddings if row.texts == texts], 8)),
            )
            for texts in report.settings.texts
        ),
        Target("memory, of two peers'", 0.6, False, ours / min(pairs) if ours and pairs else None),
        Target("first token of ask, of the library's time", 1.1, False, asks),
    ]  # fmt: skip


def _at(rows: Sequence[ChatRow] | Sequence[EmbedRow], clients: int) -> list[ChatRow | EmbedRow]:
    return [row for row in rows if row.clients == clients]


def _faster(rows: Sequence[ChatRow | EmbedRow]) -> float | None:
    """gritkit against the fastest of the others."""
    ours = [row for row in rows if row.server == "gritkit"]
    others = [row for row in rows if row.server != "gritkit"]
    if not ours or not others:
        return None
    return ours[0].timing.ratio_to(min(others, key=lambda row: row.timing.median).timing)


def report_section(report: Report) -> str:
    """The section for the results file."""
    parts = [
        _about(report),
        table(
            ["target", "bound", "here", ""],
            [
                [one.what, f"at {'least' if one.at_least else 'most'} {one.bound:g}", _number(one.figure), one.verdict]
                for one in targets(report)
            ],
        ),
        _RATIOS,
        "Chat\n\n" + _chats(report),
        "Embeddings\n\n" + _embeddings(report),
        "A running stream while a prompt is read\n\n" + _gaps(report),
        "Memory\n\n" + _memory(report),
        *(["Answers from documents\n\n" + _asks(report)] if report.asks else []),
    ]
    return section(
        title_of(TITLE, report.settings.device),
        report.settings.command,
        report.versions,
        "\n\n".join(part for part in parts if part),
    )


def as_json(report: Report) -> str:
    """Everything, with what the targets say."""
    verdicts = [{**dataclasses.asdict(one), "verdict": one.verdict} for one in targets(report)]
    made = {"machine": machine(), "targets": verdicts, **dataclasses.asdict(report)}
    return json.dumps(made, indent=2, ensure_ascii=False)


def _about(report: Report) -> str:
    settings = report.settings
    ties = ", ".join(f"{count} of {name}'s" for name, count in report.near_ties.items() if count) or "none"
    slots = "its default of slots" if settings.slots is None else f"{settings.slots} slots"
    lines = [
        f"Mistral of {report.num_parameters:,} random parameters, {settings.dtype}, {settings.device}; every server in "
        f"a process of its own, asked in turn by a client in another, {settings.rounds} counted rounds after one that "
        f"is not. gritkit with {slots}. Answers of {settings.answer_tokens // 2} to {settings.answer_tokens * 3 // 2} "
        "tokens, greedy, streamed; no prompt is sent twice.",
        f"{report.num_compared} answers of each server were compared with the library's before: they are the same, or "
        f"leave it at a near-tie ({ties}). Vectors differ by {report.difference:.0e} at most.",
    ]
    if report.batching:
        lines.append(
            f"transformers' continuous batching has `{' '.join(report.batching)}`: the cache that this load "
            f"needs, and the best of {', '.join(map(str, settings.batch_tokens))} tokens of a batch. Its default takes "
            "60 % of the memory and is slower."
        )
    lines += [f"{peer} was skipped: {why}." for peer, why in report.skipped.items()]
    return "\n\n".join(lines)


def _chats(report: Report) -> str:
    rows = []
    for row in report.chats:
        (ours,) = (one for one in report.chats if one.server == "gritkit" and one.clients == row.clients)
        rows.append([str(row.clients), *_speeds(row, ours), *_ms(row.first), *_ms(row.between)])
    return table(["clients", *_SPEEDS, "first token p50", "p95", "next p50", "p95"], rows)


def _embeddings(report: Report) -> str:
    rows = []
    for row in report.embeddings:
        same = [one for one in report.embeddings if (one.clients, one.texts) == (row.clients, row.texts)]
        (ours,) = (one for one in same if one.server == "gritkit")
        rows.append([str(row.texts), str(row.clients), *_speeds(row, ours), *_ms(row.latency)])
    return table(["texts a request", "clients", *_SPEEDS, "request p50", "p95"], rows)


_SPEEDS = ("server", "tokens/s", "slowest - fastest round", "gritkit is")


def _speeds(row: ChatRow | EmbedRow, ours: ChatRow | EmbedRow) -> list[str]:
    low, high = row.timing.spread
    ratio = "" if row is ours else f"{ours.timing.ratio_to(row.timing):.2f}x as fast"
    return [row.server, f"{row.throughput:,.0f}", f"{row.tokens / high:,.0f} - {row.tokens / low:,.0f}", ratio]


def _gaps(report: Report) -> str:
    rows = [
        [
            row.server, f"{1e3 * row.usual:.1f} ms", _range(row.longest), _range(row.prefill), _range(row.beside),
            f"{row.ratio:.2f}",
        ]
        for row in report.gaps
    ]  # fmt: skip
    header = ["server", "usual gap", "longest gap", "prefill alone", "prefill beside", "longest gap / prefill alone"]
    return table(header, rows) + (
        "\n\ntransformers serve without continuous batching reads the prompt when the stream has ended."
        if any(row.server == "transformers serve" for row in report.chats)
        else ""
    )


def _memory(report: Report) -> str:
    rows = [
        [row.what, f"{row.memory.total / _MIB:,.0f} MiB", f"{row.memory.private / _MIB:,.0f} MiB"]
        for row in report.memory
    ]
    about = (
        "After all their work; the memory of a GPU is not counted. In memory: pages that a process has of its own, and "
        "those of files that it maps, once for all processes of a row; private: pages that nobody on the machine "
        "shares (USS)."
    )
    return f"{table(['processes', 'in memory', 'of it private'], rows)}\n\n{about}" if rows else "Linux alone tells it."


def _asks(report: Report) -> str:
    rows = [[row.who, *_ms(row.spread)] for row in report.asks]
    settings = report.settings
    about = (
        f"{settings.num_questions} questions in turn, {settings.num_documents} documents of {settings.document_tokens} "
        "tokens, 3 for each answer, key-values warm. From the call to the first text, over HTTP and in the library."
    )
    return f"{table(['answer from', 'first token p50', 'p95'], rows)}\n\n{about}"


def _ms(spread: Spread) -> list[str]:
    return [f"{1e3 * spread.p50:,.1f} ms", f"{1e3 * spread.p95:,.1f} ms"]


def _range(seconds: Sequence[float]) -> str:
    """Median, and smallest to largest."""
    ordered = sorted(1e3 * one for one in seconds)
    return f"{ordered[len(ordered) // 2]:,.0f} ms ({ordered[0]:,.0f} - {ordered[-1]:,.0f})"


def _number(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.2f}"
