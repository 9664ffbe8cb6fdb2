"""``/tokenize`` and ``/detokenize``: between text and this server's token ids.

This module knows nothing about models.
"""

from __future__ import annotations

from fastapi import APIRouter

from gritkit_serve.routes.answers import adapter_of
from gritkit_serve.routes.token_ids import check_ids
from gritkit_serve.schemas.errors import ERRORS
from gritkit_serve.schemas.tokenize import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse
from gritkit_serve.service import ServiceDep

router = APIRouter(tags=["tokens"], responses=ERRORS)


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, service: ServiceDep) -> TokenizeResponse:
    """The tokens of a text or a conversation: what a prompt costs, and ids for ``token_ids``."""
    body.check(service.settings)
    adapter_of(service, body.model)
    tokens = service.model.tokens

    def work() -> TokenizeResponse:
        if body.messages is not None:
            ids = tokens.chat_prompt([message.message() for message in body.messages])
        else:
            ids = (tokens.encode if body.add_special_tokens is False else tokens.raw_prompt)(body.text or "")
        spelled = [tokens.backend.id_to_token(one) or "" for one in ids]
        return TokenizeResponse(ids=ids, tokens=spelled, count=len(ids))

    return await service.engine.call(work)


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, service: ServiceDep) -> DetokenizeResponse:
    """The text of token ids, special tokens spelled out."""
    adapter_of(service, body.model)
    tokens = service.model.tokens

    def work() -> DetokenizeResponse:
        ids = check_ids(tokens, body.ids, "ids")
        return DetokenizeResponse(text=tokens.backend.decode(ids, skip_special_tokens=False))

    return await service.engine.call(work)
