"""Next-token logits of one row -> one token id.

The order is Hugging Face's: repetition penalty, temperature, top-k, top-p, min-p. A row has its own random generator,
so its tokens do not depend on what else is being decoded.

This module knows nothing about models or text.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from gritkit.errors import InputError
from gritkit.generation.params import SamplingParams


class Constraint(Protocol):
    """What the tokens of one row may be, step by step (a grammar, a schema); it remembers those that were chosen."""

    def allowed(self, size: int) -> Tensor:
        """Boolean [size], True for the tokens that may come next; at least one of them."""

    def chosen(self, token_id: int) -> None:
        """This token comes next."""


class Sampler:
    """Chooses the tokens of one row; remembers what the row has seen."""

    def __init__(self, params: SamplingParams, prompt_ids: Iterable[int], constraint: Constraint | None = None) -> None:
        self._params = params
        self._constraint = constraint
        self._seen = sorted(set(prompt_ids)) if params.repetition_penalty != 1.0 else []
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    def pick(self, logits_V: Tensor) -> int:
        """The next token for fp32 logits [V] on the CPU; the row's memory then includes it.

        Raises InputError where the row's constraint allows none.
        """
        scores = self._penalised(logits_V)
        if self._constraint is not None:
            scores = scores.masked_fill(~self._constraint.allowed(len(scores)), float("-inf"))
            if float(scores.max()) == float("-inf"):  # the likeliest would be the first, allowed or not
                raise InputError("the constraint allows no token here: what came before cannot be continued")
        scores = filtered(scores, self._params)
        if self._params.temperature == 0.0:
            token = int(scores.argmax())
        else:
            token = int(torch.multinomial(scores.softmax(-1), 1, generator=self._generator))
        if self._params.repetition_penalty != 1.0 and token not in self._seen:
            self._seen.append(token)
        if self._constraint is not None:
            self._constraint.chosen(token)
        return token

    def _penalised(self, logits_V: Tensor) -> Tensor:
        if not self._seen:
            return logits_V
        logits_V = logits_V.clone()
        seen = torch.tensor(self._seen)
        scores = logits_V[seen]
        penalty = self._params.repetition_penalty
        penalised = torch.where(scores < 0, scores * penalty, scores / penalty)
        # One near 0 divides beyond what a float holds: as large as it can be, no infinity that becomes a NaN.
        logits_V[seen] = penalised.nan_to_num(nan=0.0)
        return logits_V


def filtered(logits_V: Tensor, params: SamplingParams) -> Tensor:
    """Logits relative to the largest, divided by the temperature, -inf where top-k, top-p or min-p drop a token.

    Unchanged when greedy.
    """
    if params.temperature == 0.0:
        return logits_V
    # Counted from the largest: a temperature near 0 then gives 0 and -inf, never inf - inf.
    logits_V = (logits_V - logits_V.max()) / max(params.temperature, 1e-30)
    if 0 < params.top_k < len(logits_V):
        logits_V = logits_V.masked_fill(logits_V < logits_V.topk(params.top_k).values[-1], float("-inf"))
    if params.top_p < 1.0:
        ordered, places = logits_V.sort(descending=True)
        probabilities = ordered.softmax(-1)
        # A token goes when those likelier than it already reach top_p; the likeliest stays, also where top_p is so near
        # 0 that its type holds 0.
        beyond = probabilities.cumsum(-1) - probabilities >= params.top_p
        beyond[0] = False
        logits_V = logits_V.masked_fill(torch.zeros_like(beyond).scatter(0, places, beyond), float("-inf"))
    if params.min_p > 0.0:
        probabilities = logits_V.softmax(-1)
        logits_V = logits_V.masked_fill(probabilities < params.min_p * probabilities.max(), float("-inf"))
    return logits_V
