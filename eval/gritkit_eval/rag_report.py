"""The tables of ``gritkit eval rag``: quality, closeness to full prefill, time and bytes of every way.

This module knows nothing about how any of it was measured.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Sequence
from itertools import groupby

from gritkit.rag.gate import CLOSED, STORED, Measured
from gritkit_eval.bench.report import section, table
from gritkit_eval.rag import Row, Settings
from gritkit_eval.report.words import markdown

_HEADER = (
    "read", "mode", "codec", "match", "EM", "F1", "in documents", "KL", "first KL", "agreement", "same",
    "TTFT ms", "p95", "total ms", "bytes/token",
)  # fmt: skip


def title(settings: Settings) -> str:
    """Of the section: documents that are given and documents that are found are two tables."""
    return f"eval rag, {'own passages' if settings.oracle else f'{settings.by} search'}"


def tables(rows: Sequence[Row]) -> str:
    """A table for each model and question file."""
    parts = []
    for (model, questions), group in groupby(rows, lambda row: (row.model, row.questions)):
        measured = [row.measured for row in group]
        lines = [_line(one) for one in measured]
        head = f"**{markdown(model)}** on {markdown(questions)}, {measured[0].num_questions} questions"
        parts.append(f"{head}\n\n{table(_HEADER, lines)}")
    return "\n\n".join(parts)


def report(rows: Sequence[Row], settings: Settings, command: str) -> str:
    """The section of the results file; ``command`` makes the same."""
    versions = {name: importlib.metadata.version(name) for name in ("gritkit", "lancedb", "torch", "transformers")}
    given = "each question's own passages, gold ones first" if settings.oracle else f"found by {settings.by} search"
    body = (
        f"{given[0].upper()}{given[1:]}; answers of at most {settings.max_new_tokens} tokens, greedy. Read: how "
        "many chunks, and how later ones are joined. In documents: an accepted answer stands in what was read. KL "
        "(nats a token), agreement and same: against full prefill (`off`) of the same chunks, along its answer. TTFT "
        "and total: medians without the search, key-values from memory or disk as they lie.\n\n"
        f"{_missing(rows)}{tables(rows)}"
    )
    return section(title(settings), command, versions, body)


def _missing(rows: Sequence[Row]) -> str:
    count = sum(row.measured.recomputed for row in rows)
    return f"{count} chunks had to be read anew, which their ways' times include.\n\n" if count else ""


def _line(one: Measured) -> list[str]:
    at = one.setting
    read = "-" if at.mode == CLOSED else f"{at.top_k}" + (f" {at.join}" if at.top_k > 1 else "")
    mode = f"linked {at.link_tokens}" if at.mode == "linked" else at.mode
    return [
        read, mode, at.codec if at.mode in STORED else "", *(f"{x:.3f}" for x in (one.match, one.exact_match, one.f1)),
        _shown(one.found, ".2f"), _shown(one.kl, ".4f"), _shown(one.kl_first, ".4f"), _shown(one.agreement, ".3f"),
        _shown(one.same, ".2f"), f"{one.ttft_s * 1e3:.1f}", f"{one.ttft_p95_s * 1e3:.1f}", f"{one.total_s * 1e3:.1f}",
        _shown(one.bytes_per_token, ",.0f"),
    ]  # fmt: skip


def _shown(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)
