"""How well a model predicts a text: bits per byte, and perplexity per token and per word.

    text -> ids -> windows that overlap -> each token predicted once -> one sum, over bytes, tokens and words

A window holds ``window`` tokens and stands ``stride`` tokens after the one before; of each but the first only its last
``stride`` tokens are predicted, with at least ``window - stride`` before them. Bits per byte compare models with
different tokenizers.

This module knows nothing about tasks or how results are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from gritkit import GritModel
from gritkit.errors import InputError
from gritkit.files import resolve
from gritkit.metrics import perplexity
from gritkit_eval.generation import rows
from gritkit_eval.generation.scoring import Pair, context_limit, score_pairs
from gritkit_eval.generation.texts import Texts

WINDOW = 2048
"""Where a model can hold more, a token still looks back no further, unless asked to."""
JSON = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst", ".parquet")


@dataclass(frozen=True)
class Predicted:
    """All texts of a file together."""

    nats: float
    """Summed negative log-likelihood."""
    num_tokens: int
    num_words: int
    """Between white space."""
    num_bytes: int
    """In UTF-8."""
    num_texts: int

    @property
    def scores(self) -> dict[str, float]:
        return {
            "bits_per_byte": self.nats / math.log(2) / self.num_bytes,
            "token_perplexity": perplexity(self.nats, self.num_tokens),
            "word_perplexity": perplexity(self.nats, self.num_words),
            "num_tokens": float(self.num_tokens),
            "num_texts": float(self.num_texts),
        }


def read_texts(path: Path, limit: int | None = None) -> list[str]:
    """The texts of a file, the first ``limit`` of them: a text file is one, a record's field ``text`` is one.

    Raises:
        RecordError: naming file and line of a record without text.
        InputError: for a file that is missing, is not UTF-8, or has no words.
    """
    path = resolve(path)
    if path.name.endswith(JSON):
        found = [str(row["text"]) for row in rows.read(path, {"text": rows.any_text})]
    else:
        try:
            found = [path.read_text(encoding="utf-8-sig")]
        except UnicodeDecodeError as error:
            raise InputError(f"{path.name} is not UTF-8 (byte {error.start}): convert it first") from None
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from None
    texts = [text for text in found if text.strip()][:limit]
    if not texts:
        raise InputError(f"{path.name} has no words to predict")
    return texts


def spans(model: GritModel, window: int | None) -> tuple[int, int]:
    """(window, stride) for a model: what is asked for, or what it can hold up to :data:`WINDOW`; half of it.

    Raises:
        InputError: for a window that the model cannot hold.
    """
    limit = context_limit(model)
    if window is not None and not 2 <= window <= limit:
        raise InputError(f"window={window} must be between 2 and the model's context of {limit} tokens")
    size = window or min(limit, WINDOW)
    return size, max(1, size // 2)


def windows(ids: Sequence[int], window: int, stride: int) -> list[Pair]:
    """Pairs (context, predicted) that together predict every id but the first, each once."""
    pairs: list[Pair] = []
    done = 1
    end = min(window, len(ids))
    while done < len(ids):
        pairs.append((ids[max(0, end - window) : done], ids[done:end]))
        done, end = end, min(end + stride, len(ids))
    return pairs


def predict(model: GritModel, texts: Sequence[str], *, window: int | None = None, progress: bool = False) -> Predicted:
    """Predict every token of every text after the tokenizer's beginning of text (its end, where it has none).

    Raises:
        InputError: for a window that the model cannot hold.
    """
    size, stride = spans(model, window)
    encoder = Texts(model.tokenizer)
    pairs: list[Pair] = []
    num_tokens = 0
    for text in texts:
        ids = [encoder.prefix_id, *encoder.encode(text, special=False)]
        num_tokens += len(ids) - 1
        pairs += windows(ids, size, stride)
    with tqdm(total=len(pairs), unit=" windows", disable=None if progress else True, delay=1) as bar:
        scored = score_pairs(model, pairs, bar.update)
    return Predicted(
        nats=-math.fsum(one.logprob for one in scored),
        num_tokens=num_tokens,
        num_words=sum(len(text.split()) for text in texts),
        num_bytes=sum(len(text.encode()) for text in texts),
        num_texts=len(texts),
    )
