"""Token ids from outside, which may be any numbers.

This module knows nothing about routes.
"""

from __future__ import annotations

from collections.abc import Sequence

from gritkit.tokens import Tokens
from gritkit_serve.errors import ParameterError


def check_ids(tokens: Tokens, ids: Sequence[int], where: str) -> list[int]:
    """The ids themselves. Raises ParameterError for one that the tokenizer does not have."""
    known = tokens.backend.id_to_token
    for place, one in enumerate(ids):
        if known(one) is None:
            size = tokens.backend.get_vocab_size()
            raise ParameterError(
                f"{where}[{place}]={one} is no token of this tokenizer, which has {size}: take ids from /tokenize",
                param=where,
            )
    return list(ids)
