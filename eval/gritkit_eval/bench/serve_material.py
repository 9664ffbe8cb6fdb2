"""What ``bench serve`` asks of its servers: a random model, prompts, texts to embed, documents and questions.

Speed does not depend on what the weights are, so no download is needed; texts are the docstrings of the standard
library. A prompt is sent to each server once, so that nobody finds its beginning computed already.

This module knows nothing about processes, clocks or tables.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, cycle, islice
from pathlib import Path

from gritkit import GritModel
from gritkit.errors import InputError
from gritkit_eval.bench.embed import docstrings, make_model

_NUM_TEXTS = 3000
"""Docstrings that the tokenizer is trained on and everything is cut from."""
LONGEST_PROMPT = 416
"""Tokens of a prompt, chat format included."""
_QUESTION_WORDS = 12


@dataclass(frozen=True)
class Material:
    """Texts for a model."""

    prompts: Iterator[str]
    """Without an end, all different, of up to LONGEST_PROMPT tokens."""
    longs: Iterator[str]
    """The same, of about ``long_tokens`` tokens, chat format included."""
    long_tokens: int
    texts: Sequence[str]
    """To embed."""
    text_tokens: Sequence[int]
    """Of each of them, format included."""
    documents: Sequence[str]
    questions: Sequence[str]
    num_parameters: int


def make(
    folder: Path,
    *,
    size: str,
    device: str,
    num_texts: int,
    long_tokens: int,
    num_documents: int,
    document_tokens: int,
    num_questions: int,
) -> Material:
    """Save a model in ``folder`` and choose texts for it. Raises InputError for an unknown size."""
    found = list(dict.fromkeys(docstrings()))
    chosen = random.Random(0).sample(found, min(len(found), _NUM_TEXTS))
    make_model(folder, chosen, size, device)
    _keep_to_plain_tokens(folder)
    model = GritModel.from_pretrained(folder, device=device)
    lengths = [len(ids) for ids in model.tokens.backend.encode_batch(chosen, add_special_tokens=False)]
    short = [text for text, length in zip(chosen, lengths, strict=True) if 4 <= length <= LONGEST_PROMPT - 16]
    words = " ".join(chosen).split()
    texts = [short[number % len(short)] for number in range(num_texts)]

    def long(number: int) -> str:
        return _cut(model, f"{number}: ", words, number * 31, long_tokens)

    documents = [_cut(model, "", words, 7919 * number, document_tokens) for number in range(num_documents)]
    asked = islice(cycle(documents), num_questions)
    questions = [" ".join(document.split()[-_QUESTION_WORDS:]) for document in asked]
    return Material(
        prompts=(f"{number}: {short[number % len(short)]}" for number in count()),
        longs=(long(number) for number in count()),
        long_tokens=_chat_tokens(model, long(0)),
        texts=texts,
        text_tokens=[len(one) for one in model.tokens.to_embed(texts, "passage", None, 4096, truncate=False)],
        documents=documents,
        questions=questions,
        num_parameters=sum(one.numel() for one in model.parameters()),
    )


def _chat_tokens(model: GritModel, text: str) -> int:
    return len(model.tokens.chat_prompt([{"role": "user", "content": text}]))


def _cut(model: GritModel, before: str, words: Sequence[str], start: int, num_tokens: int) -> str:
    """As many words as fit into so many tokens of a chat. Raises InputError where not even one does."""
    start %= max(1, len(words) - num_tokens)
    low, high = 0, min(num_tokens, len(words) - start)
    while low < high:
        middle = (low + high + 1) // 2
        fits = _chat_tokens(model, before + " ".join(words[start : start + middle])) <= num_tokens
        low, high = (middle, high) if fits else (low, middle - 1)
    if not low:
        raise InputError(f"no text fits into {num_tokens} tokens")
    return before + " ".join(words[start : start + low])


def _keep_to_plain_tokens(folder: Path) -> None:
    """Let the model write ASCII alone and never end: then every answer has the tokens that were asked for, and every
    token is a text that a server can send at once."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))], skip_special_tokens=True)
    others = [token for token, text in enumerate(texts) if not text or not text.isascii()]
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["lm_head.weight"][torch.tensor(others)] = 0.0  # the largest of thousands of random logits is above it
    save_file(weights, file, metadata={"format": "pt"})
