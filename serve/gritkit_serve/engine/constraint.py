"""Answers that are JSON: a grammar that says, before each token, which ones may come.

The grammars are llguidance's: JSON of any kind, or of a schema. What compiling a schema may take is not bounded here:
one that a client sent is tried first (:mod:`gritkit_serve.json_schemas`).

This module knows nothing about requests, sampling or HTTP.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gritkit.tokens import Tokens
from gritkit_serve.grammar import compiled, schema_text, unusable

_ANY_OBJECT: dict[str, Any] = {"type": "object"}


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
        text = schema_text(_ANY_OBJECT if schema is None else schema)
        return JsonConstraint(compiled(self._tokenizer, text), self._eos_ids)


class JsonConstraint:
    """A :class:`gritkit.generation.sampling.Constraint`. Once the JSON is whole, the text ends."""

    def __init__(self, matcher: Any, eos_ids: frozenset[int]) -> None:
        self._matcher = matcher
        self._eos_ids = sorted(eos_ids)

    def copy(self) -> JsonConstraint:
        """The same, for another answer: they go on apart from each other."""
        return JsonConstraint(self._matcher.deep_copy(), frozenset(self._eos_ids))

    def allowed(self, size: int) -> Tensor:
        """Boolean [size], True for the tokens that may come next.

        Raises InputError where no token can come, or the grammar's limits are reached: an answer that ended there would
        look like one that obeys the schema.
        """
        allowed_V = torch.zeros(size, dtype=torch.bool)
        if not self._matcher.is_stopped():
            bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
            known = torch.from_numpy(np.unpackbits(bits, bitorder="little")[:size].astype(bool))
            allowed_V[: len(known)] = known
        if self._matcher.is_error():
            raise unusable(self._matcher.get_error())
        if not bool(allowed_V.any()):
            allowed_V[self._eos_ids] = True
        return allowed_V

    def chosen(self, token_id: int) -> None:
        """This token comes next."""
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token_id)
