"""What ``bench train`` trains: real triples and examples of mixed length, a batch of their token ids, and the model.

Texts come from files of records, from the folder of shared data sets, or, where there is neither, from the docstrings
of the standard library. No text occurs twice in a batch, so that libraries which mask repeated ones and libraries which
do not have the same loss.

This module knows nothing about contestants or time.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gritkit import GritModel
from gritkit.config import EmbeddingConfig
from gritkit.data import EmbeddingRecord, GenerativeRecord, parse_record
from gritkit.data.reading import file_rows, located
from gritkit.errors import InputError, RecordError
from gritkit.tokens import Tokens
from gritkit_eval.bench.embed import docstrings, make_model

SIZES = {"small": (256, 4, 768, 4), "medium": (512, 8, 1408, 8)}
"""Name -> hidden size, layers, feed-forward size, heads."""
_CONTRASTIVE = ("contrastive/medquad/train.jsonl.gz", "contrastive/wiki_section_triples.jsonl.gz")
_INSTRUCT = tuple(f"instruct/{name}/train.jsonl.gz" for name in ("alpaca_2k", "dolly_2k", "lima"))
_TOKENIZER = "tokenizers/gpt-neox-olmo-50k"

Ids = list[int]
Batch = dict[str, Any]
"""What the workers read, see ``workers/train_batch.py``."""


@dataclass(frozen=True)
class Material:
    """Texts, before any tokenizer."""

    triples: list[tuple[str, str, str]]
    """Query, positive, hard negative."""
    examples: list[GenerativeRecord]


def choose(data: Sequence[Path], shared: Path | None, num: int, num_examples: int) -> Material:
    """``num`` triples and ``num_examples`` examples at random, always the same ones.

    Raises:
        InputError: where there are fewer. RecordError: for a record that is none, naming its place.
    """
    if not data and shared is not None:
        data = [path for name in (*_CONTRASTIVE, *_INSTRUCT) if (path := _under(shared, name)) is not None]
    records = list(_records(data) if data else _from_docstrings())
    random.Random(0).shuffle(records)
    triples, examples, seen = [], [], set[str]()
    for record in records:
        if isinstance(record, GenerativeRecord):
            examples.append(record)
        elif record.neg:
            triple = (record.query.text.strip(), record.pos[0].text.strip(), record.neg[0].text.strip())
            if len(set(triple) - seen) == len(triple):
                seen |= set(triple)
                triples.append(triple)
    if len(triples) < num or len(examples) < num_examples:
        raise InputError(
            f"{len(triples)} triples with a negative and {len(examples)} examples found, {num} and {num_examples} "
            "wanted: give fewer with --num and --num-examples, or more with --data"
        )
    return Material(triples[:num], examples[:num_examples])


def _under(shared: Path, name: str) -> Path | None:
    return next((path for path in (shared / "data" / name, shared / name) if path.exists()), None)


def _records(data: Sequence[Path]) -> Iterator[EmbeddingRecord | GenerativeRecord]:
    for given in data:
        for path in located(given):
            if isinstance(path, str):
                raise InputError(f"--data {given} is no file or folder here")
            for place, row in file_rows(path):
                try:
                    if isinstance(row, RecordError):
                        raise row
                    yield parse_record(_as_chat(row))
                except RecordError as error:
                    raise RecordError(f"{path.name}:{place}: {error}") from None


def _as_chat(row: Any) -> Any:
    """The columns instruction, input and output as a conversation; other rows as they are."""
    if not isinstance(row, dict) or "instruction" not in row or "output" not in row:
        return row
    return {"text": ["\n\n".join(part for part in (row["instruction"], row.get("input")) if part), row["output"]]}


def _from_docstrings() -> Iterator[EmbeddingRecord | GenerativeRecord]:
    """Summary line -> the rest of the docstring, the next one's rest for a negative; and whole ones to write."""
    docs = sorted({doc for doc in docstrings() if doc.partition("\n\n")[2].strip()})
    random.Random(0).shuffle(docs)
    half = len(docs) // 2
    for doc, other in zip(docs[:half:2], docs[1:half:2], strict=False):
        summary, _, rest = doc.partition("\n\n")
        yield EmbeddingRecord.of(summary, [rest], [other.partition("\n\n")[2]])
    for doc in docs[half:]:
        yield GenerativeRecord.of(doc)


def batch_of(material: Material, tokens: Tokens, max_length: int) -> Batch:
    """Token ids of all texts, cut to ``max_length``, with the masks that gritkit decides on.

    Raises:
        InputError: where the masks are none that sentence-transformers can have.
    """
    columns: dict[str, list[Ids]] = {}
    begins: set[int] = set()
    for name, texts in zip(("queries", "positives", "negatives"), zip(*material.triples, strict=True), strict=True):
        sequences = tokens.to_embed(texts, "passage", None, max_length, truncate=True)
        columns[name] = [sequence.ids.tolist() for sequence in sequences]
        begins |= {int(sequence.pool_mask.argmax()) for sequence in sequences}
    if len(begins) > 1:
        raise InputError(
            f"this tokenizer makes {min(begins)} to {max(begins)} tokens of one prompt, by the text behind it, and "
            "sentence-transformers leaves one number out of the mean: measure with another --model"
        )
    examples = []
    for record in material.examples:
        one = tokens.text_example(record.text) if record.text is not None else tokens.chat_example(record.messages)
        ids, targets = one.ids[:max_length].tolist(), one.loss_mask[:max_length].tolist()
        if any(targets):  # a prompt may fill it all
            examples.append({"ids": ids, "targets": targets})
    return {**columns, "pool_from": begins.pop(), "examples": examples}


def part_of(batch: Batch, num: int, num_examples: int) -> Batch:
    """The first triples and examples alone."""
    columns = {name: batch[name][:num] for name in ("queries", "positives", "negatives")}
    return {**batch, **columns, "examples": batch["examples"][:num_examples]}


def random_pairs(num: int, length: int, vocabulary: int) -> Batch:
    """Pairs of random ids, all of one length: what memory a step takes does not depend on the words."""
    draw = random.Random(0)
    texts = [[draw.randrange(vocabulary) for _ in range(length)] for _ in range(2 * num)]
    return {"queries": texts[:num], "positives": texts[num:], "negatives": [], "pool_from": 0, "examples": []}


def num_tokens(batch: Batch) -> int:
    """Real tokens, padding not counted."""
    return sum(map(len, _sequences(batch)))


def described(batch: Batch) -> str:
    """How many of what, and how long."""
    texts = [len(ids) for name in ("queries", "positives", "negatives") for ids in batch[name]]
    examples = [len(one["ids"]) for one in batch["examples"]]
    said = f"{len(batch['queries'])} triples: {_lengths(texts)}"
    return said + (f"; {len(examples)} examples: {_lengths(examples)}" if examples else "")


def _lengths(lengths: Sequence[int]) -> str:
    middle = statistics.median(lengths)
    return f"{sum(lengths):,} tokens, {min(lengths)} to {max(lengths)} a text, median {middle:.0f}"


def _sequences(batch: Batch) -> list[Ids]:
    texts = [ids for name in ("queries", "positives", "negatives") for ids in batch[name]]
    return texts + [one["ids"] for one in batch["examples"]]


def save_model(folder: Path, material: Material, *, model: Path | None, size: str, shared: Path | None) -> GritModel:
    """The model of a folder, or a random one with a real tokenizer, saved in float32 for all contestants.

    Raises:
        InputError: for an unknown size.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig

    if model is not None:
        grit = GritModel.from_pretrained(
            model, dtype=torch.float32, device="cpu", pooling="mean", embedding_attention="bidirectional",
            prompt_format="grit",
        )  # fmt: skip
        grit.save_pretrained(folder)
        return grit
    if size not in SIZES:
        raise InputError(f"size={size!r} is not one of {', '.join(SIZES)}")
    real = _under(shared, _TOKENIZER) if shared is not None else None
    if real is None:
        real = folder.with_name(f"{folder.name}-tokenizer")
        make_model(real, [text for triple in material.triples for text in triple], "6M")
    tokenizer = AutoTokenizer.from_pretrained(real)
    hidden, layers, inner, heads = SIZES[size]
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads // 2, max_position_embeddings=4096, sliding_window=None,
        tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
    )  # fmt: skip
    lm = AutoModelForCausalLM.from_config(config)
    grit = GritModel.from_parts(lm, tokenizer, EmbeddingConfig(prompt_format="grit", max_length=4096))
    grit.save_pretrained(folder)
    return grit
