"""``/tokenize`` and ``/detokenize``: between text and this server's token ids.

This module knows nothing about models.
"""

from __future__ import annotations

from fastapi import APIRouter, Response

from gritkit_serve.errors import ParameterError
from gritkit_serve.routes.answers import adapter_of
from gritkit_serve.routes.length import check_length
from gritkit_serve.routes.replies import json_reply
from gritkit_serve.routes.token_ids import check_ids
from gritkit_serve.schemas.errors import ERRORS
from gritkit_serve.schemas.tokenize import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse
from gritkit_serve.service import Service, ServiceDep

router = APIRouter(tags=["tokens"], responses=ERRORS)


@router.post("/tokenize", response_model=TokenizeResponse)
async def tokenize(body: TokenizeRequest, service: ServiceDep) -> Response:
    """The tokens of a text or a conversation: what a prompt costs, and ids for ``token_ids``."""
    body.check(service.settings)
    adapter_of(service, body.model)
    tokens = service.model.tokens
    messages = [message.message() for message in body.messages or ()]
    said = (body.text or "") if body.messages is None else "\n".join(message["content"] for message in messages)
    param = "text" if body.messages is None else "messages"
    await check_length(service, said, service.settings.max_input_tokens, param)

    def work() -> Response:
        if body.messages is not None:
            ids = tokens.chat_prompt(messages)
        else:
            ids = (tokens.encode if body.add_special_tokens is False else tokens.raw_prompt)(body.text or "")
        _check_count(len(ids), param, service)
        spelled = [tokens.backend.id_to_token(one) or "" for one in ids]
        return json_reply(TokenizeResponse(ids=ids, tokens=spelled, count=len(ids)))

    return await service.engine.call(work)


@router.post("/detokenize", response_model=DetokenizeResponse)
async def detokenize(body: DetokenizeRequest, service: ServiceDep) -> Response:
    """The text of token ids, special tokens spelled out."""
    adapter_of(service, body.model)
    _check_count(len(body.ids), "ids", service)
    tokens = service.model.tokens

    def work() -> Response:
        ids = check_ids(tokens, body.ids, "ids")
        return json_reply(DetokenizeResponse(text=tokens.backend.decode(ids, skip_special_tokens=False)))

    return await service.engine.call(work)


def _check_count(count: int, param: str, service: Service) -> None:
    limit = service.settings.max_input_tokens
    if count > limit:
        raise ParameterError(f"{param} has {count} tokens: send at most {limit} at once", param=param)
