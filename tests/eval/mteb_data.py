"""A folder with a tiny set of every kind that ``gritkit eval mteb`` reads from files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ANIMALS = ("beaver", "otter", "heron", "trout", "mink", "newt", "crane", "vole")
ACTS = ("builds a dam", "swims in the river", "waits for fish", "digs a hole", "sings at dawn", "eats moss")
TEXTS = [f"the {animal} {act}" for animal in ANIMALS for act in ACTS]


def write(path: Path, rows: Iterable[Mapping[str, Any] | str]) -> None:
    """Rows as JSON Lines, strings as they are; compressed where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(lines.encode()) if path.name.endswith(".gz") else lines.encode())


def every_kind(root: Path) -> Path:
    """One set of each kind; the classification set has six classes, so it is clustered too."""
    pairs = [(one, other) for one in TEXTS[:12] for other in TEXTS[3:9]][::4]
    alike = [len(set(one.split()) & set(other.split())) for one, other in pairs]
    write(
        root / "sts/water/test.jsonl",
        [{"sentence1": a, "sentence2": b, "score": s / 2} for (a, b), s in zip(pairs, alike, strict=True)],
    )
    examples = [{"text": text, "label": ACTS[place % len(ACTS)]} for place, text in enumerate(TEXTS)]
    write(
        root / "classification/acts/train.jsonl.gz",  # twice the shots of every class, so that draws differ
        [{**one, "text": f"{when}, {one['text']}"} for when in ("at night", "in winter") for one in examples],
    )
    write(root / "classification/acts/test.jsonl.gz", examples)
    write(
        root / "pair_classification/same/test.jsonl",
        [
            {"premise": a, "hypothesis": b, "label": (s > 1) ^ (n % 3 == 0)}
            for n, ((a, b), s) in enumerate(zip(pairs, alike, strict=True))
        ],
    )
    write(
        root / "reranking/acts/test.jsonl",
        [
            {"query": f"who {act}?", "positive": [f"the {ANIMALS[n]} {act}"], "negative": TEXTS[n + 1 : 40 : 7]}
            for n, act in enumerate(ACTS)
        ],
    )
    write(
        root / "retrieval/animals/corpus.jsonl",
        [{"_id": f"d{n}", "title": "", "text": text} for n, text in enumerate(TEXTS)]
        + [{"_id": "bare", "title": "a title alone", "text": ""}],
    )
    write(
        root / "retrieval/animals/queries.jsonl",
        [{"_id": n, "text": f"what does the {one} do?"} for n, one in enumerate(ANIMALS)],
    )
    write(
        root / "retrieval/animals/qrels.jsonl",
        [
            {"query_id": n, "corpus_id": f"d{len(ACTS) * n + place}", "score": place % 3}
            for n in range(len(ANIMALS) - 1)
            for place in range(len(ACTS))
        ],
    )
    write(
        root / "bitext/mirror/test.jsonl",
        [
            {"lang": language, "sentence1": turn(text), "sentence2": text}
            for language, turn in (("deu", str.upper), ("fra", lambda text: text[::-1]))
            for text in TEXTS[:20]
        ],
    )
    write(
        root / "summarization/notes/test.jsonl",
        [
            {
                "text": " ".join(TEXTS[n : n + 4]),
                "human_summaries": TEXTS[n : n + 2],
                "machine_summaries": TEXTS[n : n + 8 : 2],
                "relevance": [4, 3.5, 2, 1],
            }
            for n in range(0, 24, 4)
        ],
    )
    return root
