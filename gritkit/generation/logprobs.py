"""Next-token logits of one row -> log-probabilities of its token and of the likeliest ones, with their texts and bytes.

This module knows nothing about sampling: the figures are the model's own, before anything is cut, divided or penalised.
"""

from __future__ import annotations

import functools
import json
import re
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor

from gritkit.generation.params import TokenLogprob

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Logprobs:
    """Makes :class:`TokenLogprob` s with one tokenizer's texts."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._by_byte = "ByteLevel" in _kinds(_state(tokenizer.decoder))

    def of(self, logits_V: Tensor, token_id: int, num_top: int) -> TokenLogprob:
        """For fp32 logits [V]; ``num_top`` likeliest tokens beside, 0 for none."""
        logprobs_V = logits_V.log_softmax(-1)
        best = logprobs_V.topk(min(num_top, len(logprobs_V)))
        top = tuple(self._one(int(i), float(p)) for p, i in zip(best.values, best.indices, strict=True))
        return self._one(token_id, float(logprobs_V[token_id]), top)

    def _one(self, token_id: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        raw = self.bytes_of(token_id)
        return TokenLogprob(token_id, raw.decode("utf-8", errors="replace"), raw, logprob, top)

    def bytes_of(self, token_id: int) -> bytes:
        """What a token adds to the text, in bytes; its name where it is a special token."""
        name = self._tokenizer.id_to_token(token_id)
        if name is None:  # a row of the output layer that no token has: padding of the vocabulary
            return b""
        if match := _BYTE.fullmatch(name):
            return bytes([int(match[1], 16)])
        if self._by_byte:
            alphabet = _byte_alphabet()
            if all(character in alphabet for character in name):
                return bytes(alphabet[character] for character in name)
        return name.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()


def _state(decoder: Any) -> Any:
    return None if decoder is None else json.loads(decoder.__getstate__())


def _kinds(state: Any) -> list[str]:
    """The types of a decoder and of those inside it."""
    if not isinstance(state, dict):
        return []
    return [str(state.get("type")), *(kind for inner in state.get("decoders", []) for kind in _kinds(inner))]


@functools.cache
def _byte_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level BPE: printable ones stand for themselves, the others for 256, 257 ... in order
    (Radford et al. 2019, GPT-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
