"""``/v1/rerank``: documents ordered by how well they answer a query.

This module knows nothing about threads or how a likelihood is computed.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter

from gritkit.encoding import beginning, encoded_each
from gritkit.tokens import Tokens, TokenSeq
from gritkit_serve.errors import ParameterError
from gritkit_serve.routes.answers import adapter_of
from gritkit_serve.routes.replies import new_id
from gritkit_serve.schemas.common import InputUsage
from gritkit_serve.schemas.errors import ERRORS
from gritkit_serve.schemas.rerank import DocumentText, RerankRequest, RerankResponse, RerankResult
from gritkit_serve.service import CallDep, Service, ServiceDep

router = APIRouter(tags=["rerank"], responses=ERRORS)

Scored = tuple[list[float], int]
"""A score for every document, and how many tokens were read."""


@router.post("/v1/rerank")
async def rerank(body: RerankRequest, service: ServiceDep, call: CallDep) -> RerankResponse:
    """Documents, best first."""
    body.check(service.settings)
    adapter, texts = adapter_of(service, body.model), body.texts()
    method = body.method or ("likelihood" if service.model.writes else "embedding")
    by = _by_likelihood if method == "likelihood" else _by_embedding
    scores, num_tokens = await by(body, texts, service, adapter)
    call.use(prompt=num_tokens)
    order = sorted(range(len(texts)), key=lambda index: (-scores[index], index))[: body.top_n]
    results = [
        RerankResult(
            index=index,
            relevance_score=scores[index],
            document=DocumentText(text=texts[index]) if body.return_documents else None,
        )
        for index in order
    ]
    return RerankResponse(
        id=new_id("rerank"),
        model=body.model or service.model_name,
        results=results,
        usage=InputUsage(prompt_tokens=num_tokens, total_tokens=num_tokens),
    )


async def _by_likelihood(body: RerankRequest, texts: list[str], service: Service, adapter: str | None) -> Scored:
    model, truncate = service.model, bool(body.truncate)

    def work() -> Scored:
        documents = _cut(model.tokens, texts, body.max_tokens_per_doc)
        examples = model.tokens.to_score(body.query, documents, model.context_length, truncate=truncate)
        num_tokens = sum(map(len, examples))
        _check_total(num_tokens, service)
        return model.score(body.query, documents, truncate=truncate), num_tokens

    return await service.engine.call(work, kind="scores", adapter=adapter)


async def _by_embedding(body: RerankRequest, texts: list[str], service: Service, adapter: str | None) -> Scored:
    model, truncate = service.model, bool(body.truncate)
    limit = min(model.embedding_config.max_length, model.context_length)

    def work() -> list[TokenSeq]:
        documents = _cut(model.tokens, texts, body.max_tokens_per_doc)
        query = model.tokens.to_embed([body.query], "query", body.instruction, limit, truncate=truncate)
        return query + model.tokens.to_embed(documents, "passage", None, limit, truncate=truncate)

    sequences = await service.engine.call(work)
    num_tokens = sum(map(len, sequences))
    _check_total(num_tokens, service)
    vectors = await service.engine.embed(sequences, adapter=adapter)
    scores: list[float] = (vectors[1:] @ vectors[0]).tolist()
    return scores, num_tokens


def _check_total(num_tokens: int, service: Service) -> None:
    limit = service.settings.max_input_tokens
    if num_tokens > limit:
        raise ParameterError(
            f"the documents, each with the query, have {num_tokens} tokens: send at most {limit} at once",
            param="documents",
        )


def _cut(tokens: Tokens, texts: Sequence[str], limit: int | None) -> list[str]:
    """The texts, those of more tokens ended where token ``limit`` begins."""
    if limit is None:
        return list(texts)
    needed = [beginning(tokens.backend, text, limit) for text in texts]
    return [
        text[: item.offsets[limit][0]] if len(item) > limit else text
        for text, item in zip(needed, encoded_each(tokens.backend, needed), strict=True)
    ]
