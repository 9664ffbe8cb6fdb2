"""Texts that are far too long are refused before all of them is tokenised, which takes some 600 bytes for each token.

This module knows nothing about what the texts are for.
"""

from __future__ import annotations

from gritkit_serve.errors import ParameterError
from gritkit_serve.service import Service

_SMALL = 1 << 16
"""Characters that are tokenised whatever comes of them."""


async def check_length(service: Service, text: str, limit: int, param: str) -> None:
    """Raises ParameterError for a large text that has more tokens than ``limit``, by more than a few.

    Any other is for whoever counts its tokens.
    """
    if len(text) <= _SMALL:
        return
    tokens = service.model.tokens
    if await service.engine.call(lambda: tokens.is_longer(text, limit)):
        raise ParameterError(f"{param} has {len(text)} characters, which are more than {limit} tokens", param=param)
