"""The section of ``bench rag``: tables, and the plot of time to the first token by length.

This module knows nothing about how any of it was measured.
"""

from __future__ import annotations

from pathlib import Path

from gritkit_eval.bench.harness import Timing
from gritkit_eval.bench.rag import FULL, TITLE, Report, Row
from gritkit_eval.bench.report import section, table
from gritkit_eval.drawing import figure, save

PLOT = Path("plots/bench-rag.png")
"""Beside the results file."""
_SHOWN = {
    FULL[0]: "full prefill, gritkit", FULL[1]: "full prefill, transformers", "cached, cold disk": "cached, cold disk",
    "cached, warm": "cached, warm (and how many times as fast)", "cached, on the device": "cached, on the device",
}  # fmt: skip
_COLOURS = ("#8c8c8c", "#444444", "#d95f02", "#1b6ca8", "#2a9d6f")


def report(made: Report) -> str:
    """The whole section."""
    settings = made.settings
    several = f"{settings.num_documents} documents of {settings.several // settings.num_documents:,} tokens"
    about = (
        f"Llama of {made.num_parameters / 1e6:.1f}M random parameters, float32, cpu. The prompt is one document of so "
        f"many tokens ({several} in the last group) and a question of {settings.question_tokens} tokens, format "
        "included; an answer of one token. Time to the first token is the answer's own (`Timings.first_token - "
        "Timings.search`): retrieval is outside, opening, reading and checksum of the blocks, decoding and rotating "
        f"are inside. Median (min - max) of {settings.rounds} interleaved rounds, of fewer for full prefill: 3 above "
        "2,048 tokens, 2 above 8,192. Cold: blocks fsynced, dropped from the page cache (posix_fadvise DONTNEED) and "
        "found absent from it (mincore) before each run. Ratios are to the faster of the two full prefills; "
        "transformers keeps no key-values in those passes. 'transformers, key-values in memory' is what it does at "
        "best: the documents read causally as one prompt, held in float32, and only the question computed; nothing is "
        "loaded, checked, decoded or moved, and it serves this order of these documents alone. 'load' is the part "
        "until the coded numbers are in memory."
    )
    parts = [about, f"![Time to the first token]({PLOT.as_posix()})", _answers(made), _of_checks(made)]
    parts += [_of_loads(made), _of_codecs(made)]
    return section(TITLE, settings.command, made.versions, "\n\n".join(parts))


def _answers(made: Report) -> str:
    lines = []
    for row in made.rows:
        ratio = "" if row is made.faster_full(row.case) else f"{made.ratio(row):.2f}x"
        lines.append([row.case.name, row.way, row.codec, _ms(Timing(row.seconds)), _load(row), ratio])
    return table(["document tokens", "way", "codec", "ms to the first token", "load", "full prefill takes"], lines)


def _of_checks(made: Report) -> str:
    lines = [
        [one.case.name, one.codec, f"{one.error:.1e}", "same" if one.same_token else "another"] for one in made.checks
    ]
    head = table(["document tokens", "codec", "logits differ by", "first token"], lines)
    return (
        "Logits of the first token against one pass of transformers under the explicit block mask, relative (longer "
        f"prompts are not compared: the mask's pass would take longer than the benchmark).\n\n{head}"
    )


def _of_loads(made: Report) -> str:
    lines = [
        [
            f"{row.block_mb:g} MB", "cold" if row.cold else "warm", f"{row.rate(row.store):,.0f}",
            f"{row.rate(row.plain):,.0f}", f"{row.share:.0%}",
        ]
        for row in made.loads
    ]  # fmt: skip
    head = table(["block", "page cache", "store, MB/s", "plain read, MB/s", "store is at"], lines)
    return (
        "Four blocks at once from the store, every byte checked, and the same files by plain reads in the same chunks "
        f"by the same number of threads, in turn.\n\n{head}"
    )


def _of_codecs(made: Report) -> str:
    lines = [
        [
            one.codec, f"{one.bytes_per_token:,.0f}", f"{one.key_error:.1e}", f"{one.value_error:.1e}",
            f"{one.encode_rate:,.0f}", "as they are" if one.codec == "exact" else f"{one.decode_rate:,.0f}",
        ]
        for one in made.codecs
    ]  # fmt: skip
    head = table(["codec", "bytes/token", "keys differ by", "values differ by", "encode, MB/s", "decode, MB/s"], lines)
    return (
        f"Round trip of key-values without position: relative error on what {made.codec_model} reads; bytes and rates "
        f"(of the float32 numbers, 8,192 bytes a token) for 8 layers with 2 heads of 64.\n\n{head}"
    )


def plot(made: Report, results: Path) -> Path:
    """Draw time by length, both logarithmic, beside the results file. Raises MissingExtraError without matplotlib."""
    drawn = figure(7.5, 4.4)
    axes = drawn.add_subplot()
    sizes = list(made.settings.sizes)
    for (way, label), colour in zip(_SHOWN.items(), _COLOURS, strict=True):
        rows = [
            row for row in made.rows if row.way == way and row.case.num_documents == 1 and row.codec in ("", "int8")
        ]
        heights = [1e3 * row.median for row in rows]
        axes.plot([row.case.num_tokens for row in rows], heights, "o-", color=colour, label=label)
        if way == "cached, warm":
            for row in rows:
                lowest = min(1e3 * one.median for one in made.rows if one.case == row.case and one.way in _SHOWN)
                axes.annotate(
                    f"{made.ratio(row):.0f}x", (row.case.num_tokens, lowest), (0, -18), textcoords="offset points",
                    ha="center", color=colour,
                )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.margins(x=0.07, y=0.12)
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("document tokens")
    axes.set_ylabel("time to the first token, ms")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    save(drawn, results.parent / PLOT)
    return results.parent / PLOT


def _ms(timing: Timing) -> str:
    low, high = timing.spread
    return f"{1e3 * timing.median:,.1f} ({1e3 * low:,.1f} - {1e3 * high:,.1f})"


def _load(row: Row) -> str:
    return "" if row.load is None else f"{1e3 * row.load:.1f}"
