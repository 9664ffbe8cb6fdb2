"""Answers that are JSON: a grammar that says, before each token, which ones may come.

The grammars are llguidance's: JSON of any kind, or of a schema. A schema is a client's, so it is bounded in size before
it is compiled, and what compiling may use is bounded too.

This module knows nothing about requests, sampling or HTTP.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gritkit.errors import InputError
from gritkit.tokens import Tokens

_LARGEST_SCHEMA = 64 << 10
"""Bytes of a schema."""
_ANY_OBJECT: dict[str, Any] = {"type": "object"}
_NO_BLANKS = {"whitespace_flexible": False}
"""Between the parts of the JSON: a model that may write blanks may write them until its tokens are used up."""


class JsonGrammars:
    """Makes the constraints of one tokenizer; thread-safe.

    ``size`` is the model's number of logits, ``eos_ids`` are the tokens that end a text.
    """

    def __init__(self, tokens: Tokens, size: int, eos_ids: frozenset[int]) -> None:
        from llguidance import LLTokenizer

        self._tokenizer = LLTokenizer(tokens.backend.to_str(), n_vocab=size, eos_token=sorted(eos_ids))
        self._eos_ids = eos_ids

    def constraint(self, schema: dict[str, Any] | None = None) -> JsonConstraint:
        """For one answer: any JSON object, or what a JSON schema allows.

        Raises:
            InputError: for a schema that is too large, or that the grammar cannot express.
        """
        from llguidance import LLMatcher

        text = json.dumps(_ANY_OBJECT if schema is None else schema)
        if len(text) > _LARGEST_SCHEMA:
            raise InputError(f"the JSON schema has {len(text)} bytes and may have {_LARGEST_SCHEMA}")
        try:
            grammar = LLMatcher.grammar_from_json_schema(text, defaults=_NO_BLANKS)  # type: ignore[arg-type]
        except ValueError as error:
            raise InputError(f"the JSON schema cannot be used: {_first_line(error)}") from None
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise InputError(f"the JSON schema cannot be used: {_first_line(matcher.get_error())}")
        return JsonConstraint(matcher, self._eos_ids)


class JsonConstraint:
    """A :class:`gritkit.generation.sampling.Constraint`. Where the grammar has no way on, the text ends."""

    def __init__(self, matcher: Any, eos_ids: frozenset[int]) -> None:
        self._matcher = matcher
        self._eos_ids = sorted(eos_ids)

    def allowed(self, size: int) -> Tensor:
        """Boolean [size], True for the tokens that may come next."""
        allowed_V = torch.zeros(size, dtype=torch.bool)
        if not self._matcher.is_error() and not self._matcher.is_stopped():
            bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
            known = torch.from_numpy(np.unpackbits(bits, bitorder="little")[:size].astype(bool))
            allowed_V[: len(known)] = known
        if not bool(allowed_V.any()):
            allowed_V[self._eos_ids] = True
        return allowed_V

    def chosen(self, token_id: int) -> None:
        """This token comes next."""
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token_id)


def _first_line(error: object) -> str:
    return (str(error).strip() or "no reason given").splitlines()[0][:200]
