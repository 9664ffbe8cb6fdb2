"""What the rest of the time of embedding is: the profile in the section of ``bench embed``.

Two questions for each precision: what would the matrix products of the linear layers take alone, at the rate that plain
products of the same shapes have in the same process, and which piece of the passes has the rest.

This module knows nothing about how pieces are told apart.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gritkit_eval.bench.embed_pieces import Products, Round
from gritkit_eval.bench.harness import Contestant, Running
from gritkit_eval.bench.report import table

_GIGA = 1e9


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Embedding in one precision."""

    dtype: str
    threads: int
    num_texts: int
    num_tokens: int
    row_tokens: int
    """Of a full packed row."""
    linear_operations: int
    attention_operations: int
    outside_operations: float
    """Share of the time outside of torch's operations, at most."""
    rounds: tuple[Round, ...]

    @property
    def typical(self) -> Round:
        """The round of the median time, whose figures are shown together, so that they add up."""
        return sorted(self.rounds, key=lambda one: one.embed)[(len(self.rounds) - 1) // 2]

    @property
    def rate(self) -> float:
        """Operations a second of the plain products."""
        return self.linear_operations / self.typical.plain

    def rate_of(self, one: Products) -> float:
        """Operations a second of the plain products of one shape."""
        return 2 * one.inner * one.outer * one.count * self.num_tokens / one.seconds


def profile(place: Path, dtype: str, rounds: int, device: str) -> Profile:
    """Of the model and the texts in a folder of the benchmark, in a process of its own."""
    options = {"folder": str(place / "model"), "texts": str(place / "texts.json"), "dtype": dtype, "device": device}
    path = place / f"{dtype}-profile.json"
    running = Running(Contestant("gritkit, watched", "embed_profile.py", options))
    try:
        for _ in range(1 + rounds):
            running.ask(run=True)
        running.ask(save=str(path))
    finally:
        running.close()
    return parsed(dtype, json.loads(path.read_text(encoding="utf-8")))


def parsed(dtype: str, saved: dict[str, Any]) -> Profile:
    """What a worker saved."""
    rounds = tuple(
        Round(one["embed"], one["pieces"], tuple(Products(**products) for products in one["products"]))
        for one in saved["rounds"]
    )
    return Profile(dtype=dtype, **{**saved, "rounds": rounds})


def described(profiles: Sequence[Profile]) -> str:
    """The profile as Markdown: bounds, rates by shape, pieces."""
    one = profiles[0]
    about = (
        f"What the rest of the time is, of {one.num_texts:,} texts and {one.num_tokens:,} tokens, in one process of "
        f"{one.threads} thread{'s' * (one.threads > 1)}. Each packed row ({one.row_tokens:,} tokens) is embedded, "
        "embedded again with a watch on every module, and followed by plain products of as many tokens with every "
        "weight of the linear layers, and nothing else. Operations are by formula: 2 for each such weight and token; "
        "4 L H for each token and layer of attention, with L tokens in the text and H numbers in all heads. Figures "
        "are those of the round of median time, in brackets the range of all rounds."
    )
    outside = " and ".join(f"{profile.outside_operations:.1%} ({profile.dtype})" for profile in profiles)
    after = (
        "No time is counted twice: a piece is left out of what it stands in. A product's own time is in 'linear "
        f"layers'; Python's is in all pieces, together at most {outside} of the passes: the share in which no "
        "operation of torch runs, by its profiler, the profiler's own work in it."
    )
    return "\n\n".join([about, _bounds(profiles), _rates(profiles), _pieces(profiles), after])


def _bounds(profiles: Sequence[Profile]) -> str:
    """What the products alone would take."""
    header = [
        "weights", "embedding", "linear layers", "plain products", "which alone take", "of the time",
        "so at most", "attention, at that rate",
    ]  # fmt: skip
    rows = []
    for profile in profiles:
        typical, more = profile.typical, profile.attention_operations
        shares = [one.plain / one.embed for one in profile.rounds]
        rows.append(
            [
                profile.dtype,
                f"{typical.embed:.3f} s",
                f"{profile.linear_operations / _GIGA:,.1f} GFLOP",
                f"{profile.rate / _GIGA:,.1f} GFLOP/s",
                f"{typical.plain:.3f} s",
                f"{typical.plain / typical.embed:.0%} ({min(shares):.0%} - {max(shares):.0%})",
                f"{typical.embed / typical.plain:.2f}x as fast",
                f"{more / _GIGA:,.1f} GFLOP, {more / profile.rate:.3f} s",
            ]
        )
    return table(header, rows)


def _rates(profiles: Sequence[Profile]) -> str:
    """Of each shape of a plain product."""
    rows = []
    for place, shape in enumerate(profiles[0].typical.products):
        name = f"({profiles[0].row_tokens:,} x {shape.inner:,}) ({shape.inner:,} x {shape.outer:,})"
        rates = [profile.rate_of(profile.typical.products[place]) for profile in profiles]
        rows.append([name, str(shape.count), *(f"{rate / _GIGA:,.1f} GFLOP/s" for rate in rates)])
    return table(["plain product", "layers", *(profile.dtype for profile in profiles)], rows)


def _pieces(profiles: Sequence[Profile]) -> str:
    """Largest first, then their sum, and the time of the same work unwatched."""
    rounds = [profile.typical for profile in profiles]
    names = sorted(rounds[0].pieces, key=lambda piece: -rounds[0].pieces[piece])
    rows = [
        [name, *(f"{one.pieces[name]:.3f} s, {one.pieces[name] / one.watched:.1%}" for one in rounds)] for name in names
    ]
    rows.append(["together", *(f"{one.watched:.3f} s" for one in rounds)])
    rows.append(["embedding, not watched", *(f"{one.embed:.3f} s" for one in rounds)])
    return table(["piece", *(profile.dtype for profile in profiles)], rows)
