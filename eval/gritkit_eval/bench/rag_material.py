"""What ``bench rag`` answers from: a random model with a real tokenizer, documents and a question of exact lengths.

Speed does not depend on what the weights are, so no download is needed; texts are the docstrings of the standard
library. This module knows nothing about processes, clocks or tables.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from gritkit import GritModel
from gritkit.errors import InputError
from gritkit_eval.bench.embed import docstrings, make_model

SHAPES = {"28M": (512, 8, 1408, 8, 2), "tiny": (64, 2, 128, 4, 2)}
"""Name -> hidden size, layers, feed-forward size, heads, key-value heads."""
_NUM_TEXTS = 3000
"""Docstrings that the tokenizer is trained on and documents are cut from."""
_NO_LIMIT = 1 << 30
_FILLER = " the"
_MARGIN = 64
"""Positions beyond the longest document and the question: the answer, and what chunks keep free."""


@dataclass(frozen=True)
class Case:
    """Documents that one answer reads, and how long they are together."""

    num_documents: int
    num_tokens: int

    @property
    def name(self) -> str:
        each = f"{self.num_tokens // self.num_documents:,}"
        return each if self.num_documents == 1 else f"{self.num_documents} x {each}"


@dataclass(frozen=True)
class Material:
    """Texts for a model."""

    question: str
    documents: dict[str, list[str]]
    """By the name of the case."""
    num_parameters: int
    chunk_tokens: int

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")


def make(folder: Path, cases: Sequence[Case], *, question_tokens: int, shape: str) -> Material:
    """Save a model in ``folder`` and choose texts for it. A document's tokens include its beginning.

    Raises:
        InputError: for an unknown shape, or a question that cannot have so few tokens.
    """
    longest = max(case.num_tokens for case in cases)
    texts = list(dict.fromkeys(islice(docstrings(), _NUM_TEXTS)))
    model = _model(folder, texts, longest + question_tokens + 2 * _MARGIN, shape)
    words = " ".join(texts).split()

    def of_document(text: str) -> int:
        return len(model.tokens.to_embed([text], "passage", None, _NO_LIMIT, truncate=False)[0])

    documents: dict[str, list[str]] = {}
    place = 0
    for case in cases:
        documents[case.name] = []
        for _ in range(case.num_documents):
            text = _text(words, place, case.num_tokens // case.num_documents, of_document)
            documents[case.name].append(text)
            place = (place + text.count(" ")) % (len(words) // 2)
    question = _text(words, place, question_tokens, lambda text: len(model.tokens.question_prompt(text)))
    num_parameters = sum(one.numel() for one in model.parameters())
    return Material(question, documents, num_parameters, longest + _MARGIN)


def _text(words: Sequence[str], start: int, num_tokens: int, size: Callable[[str], int]) -> str:
    """Words from ``start`` on that are exactly so many tokens, the last ones filled up."""
    low, high = 1, min(num_tokens, len(words) - start)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size(" ".join(words[start : start + middle])) <= num_tokens else (low, middle - 1)
    text = " ".join(words[start : start + low])
    text += _FILLER * (num_tokens - size(text))
    if size(text) != num_tokens:
        raise InputError(f"no text of {num_tokens} tokens could be made: it has {size(text)} with what belongs to it")
    return text


def _model(folder: Path, texts: list[str], context: int, shape: str) -> GritModel:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    from gritkit.config import EmbeddingConfig

    if shape not in SHAPES:
        raise InputError(f"size={shape!r} is not one of {', '.join(SHAPES)}")
    with_tokenizer = folder.with_name(f"{folder.name}-tokenizer")
    make_model(with_tokenizer, texts, "6M")
    tokenizer = AutoTokenizer.from_pretrained(with_tokenizer)
    hidden, layers, inner, heads, groups = SHAPES[shape]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=groups, max_position_embeddings=context,
        tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    embedding = EmbeddingConfig(prompt_format="plain", max_length=context)
    model = GritModel.from_parts(AutoModelForCausalLM.from_config(config), tokenizer, embedding)
    model.save_pretrained(folder)
    return model
