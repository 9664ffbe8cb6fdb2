"""The memory of a training step: the contrastive step as the batch grows, the next-token loss over many words.

Each figure comes from a process of its own: how far its memory rose above where it stood before the first step, with
weights and data there. Gradients count, as every step makes them.

This module knows nothing about texts or tables.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gritkit_eval.bench.harness import Contestant, Running, interleave
from gritkit_eval.bench.train_material import random_pairs
from gritkit_eval.bench.train_result import growth_of

_PAIRS = (256, 1024, 4096)
LENGTH = 32
"""Tokens of each text of a pair; all alike, so that rows and mini-batches are the same however many there are."""
_HEAD = {"vocabulary": 128_000, "hidden": 256, "targets": 2048}


@dataclass(frozen=True)
class MemoryRow:
    """One figure of memory."""

    what: str
    contestant: str
    size: str
    growth: int | None
    """Bytes; None where the system does not tell."""
    seconds: float | None
    relative: float | None
    """Growth over that of the contestant's first size, or of the first contestant's way."""
    skipped: str = ""


def of_pairs(place: Path, options: Mapping[str, Any], peer: Mapping[str, str], vocabulary: int) -> list[MemoryRow]:
    """The same number of pairs in fewer and larger contrastive steps, by gritkit and by sentence-transformers at its
    defaults."""
    rows = []
    contestants: tuple[tuple[str, str, Mapping[str, str]], ...] = (
        ("gritkit", "train_gritkit.py", {}),
        ("sentence-transformers, defaults", "train_sentence_transformers.py", peer),
    )
    for number in _PAIRS:
        pairs = json.dumps(random_pairs(number, LENGTH, vocabulary))
        (place / f"pairs-{number}.json").write_text(pairs, encoding="utf-8")
    for name, worker, python in contestants:
        first: int | None = None
        for number in _PAIRS:
            given = {**options, "batch": str(place / f"pairs-{number}.json")}
            running = Running(Contestant(name, worker, given, **python))
            size = f"{number:,} pairs"
            if running.missing:
                running.close()
                rows.append(MemoryRow("contrastive step", name, size, None, None, None, f"no {running.missing}"))
                continue
            # As many pairs for every size: the first passes of a process find the heap in one piece, later ones do not.
            for _ in range(max(_PAIRS) // number):
                seconds = float(running.ask(run=True)["seconds"])
            growth = _growth(running, place)
            running.close()
            first = growth if first is None else first
            relative = growth / first if growth and first else None
            rows.append(MemoryRow("contrastive step", name, size, growth, seconds, relative))
    return rows


def of_head(place: Path, device: str, rounds: int) -> list[MemoryRow]:
    """The next-token loss and its gradients: full logits, and gritkit's chunks of them."""
    ways = {"full logits": False, "gritkit, in chunks": True}
    running = [
        Running(Contestant(name, "train_head.py", {**_HEAD, "chunked": chunked, "device": device}))
        for name, chunked in ways.items()
    ]
    try:
        timings = interleave(running, rounds)
        growths = [_growth(each, place) for each in running]
    finally:
        for each in running:
            each.close()
    size = "{targets:,} targets, {vocabulary:,} words, hidden {hidden}".format(**_HEAD)
    return [
        MemoryRow(
            "next-token loss", name, size, growth, timings[name].median,
            growth / growths[0] if growth and growths[0] else None,
        )
        for name, growth in zip(ways, growths, strict=True)
    ]  # fmt: skip


def _growth(running: Running, place: Path) -> int | None:
    path = place / "memory.safetensors"
    running.ask(save=str(path))
    return growth_of(path)
