"""``/v1/embeddings``: texts in, vectors out.

This module knows nothing about threads or pooling.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator

import numpy as np
from fastapi import APIRouter, Response
from numpy.typing import NDArray
from pydantic_core import to_json

from gritkit.errors import TooLongError
from gritkit.tokens import TokenSeq
from gritkit_serve.errors import ParameterError
from gritkit_serve.routes.answers import adapter_of
from gritkit_serve.routes.token_ids import check_ids
from gritkit_serve.schemas.common import InputUsage
from gritkit_serve.schemas.embeddings import Embedding, EmbeddingNotes, EmbeddingRequest, EmbeddingResponse
from gritkit_serve.schemas.errors import ERRORS
from gritkit_serve.service import CallDep, Service, ServiceDep
from gritkit_serve.wording import as_fields

router = APIRouter(tags=["OpenAI"], responses=ERRORS)

Vectors = NDArray[np.float32]


@router.post("/v1/embeddings", response_model=EmbeddingResponse)
async def embeddings(body: EmbeddingRequest, service: ServiceDep, call: CallDep) -> Response:
    """Unit vectors of texts, in their order."""
    body.check(service.settings)
    adapter, dim = adapter_of(service, body.model), body.dimensions
    if dim is not None and dim > service.model.dim:
        raise ParameterError(f"dimensions={dim} must be between 1 and {service.model.dim}", param="dimensions")
    sequences = await service.engine.call(lambda: _sequences(body, service))
    num_tokens = sum(map(len, sequences))
    if num_tokens > service.settings.max_input_tokens:
        raise ParameterError(
            f"input has {num_tokens} tokens: send at most {service.settings.max_input_tokens} at once", param="input"
        )
    vectors = await service.engine.embed(sequences, dim=dim, adapter=adapter)
    call.use(prompt=num_tokens)
    # The vectors' places are filled in afterwards: a model of a million floats takes seconds to build and to check.
    frame = EmbeddingResponse(
        data=[],
        model=body.model or service.model_name,
        usage=InputUsage(prompt_tokens=num_tokens, total_tokens=num_tokens),
        gritkit=_notes(dim, service),
    )
    rendered = await asyncio.to_thread(_rendered, frame, vectors, body.encoding_format == "base64")
    return Response(rendered, media_type="application/json")


def _sequences(body: EmbeddingRequest, service: Service) -> list[TokenSeq]:
    model, items = service.model, body.items
    tokens, truncate = model.tokens, bool(body.truncate)
    role, instruction = body.side
    limit = min(model.embedding_config.max_length, model.context_length)
    texts = [item for item in items if isinstance(item, str)]
    try:
        if texts:
            return tokens.to_embed(texts, role, instruction, limit, truncate=truncate)
        ids = [check_ids(tokens, item, f"input[{index}]") for index, item in enumerate(items) if isinstance(item, list)]
        return tokens.ids_to_embed(ids, role, instruction, limit, truncate=truncate)
    except TooLongError as error:
        raise ParameterError(as_fields(str(error)), param="input") from error


def _notes(dim: int | None, service: Service) -> EmbeddingNotes | None:
    trained = service.model.embedding_config.matryoshka_dims
    if dim is None or dim == service.model.dim or dim in trained:
        return None
    how = f"was trained to be cut to {', '.join(map(str, trained))}" if trained else "was not trained to be cut"
    return EmbeddingNotes(notes=[f"the vectors were cut to {dim} dimensions, and this model {how}"])


def _rendered(frame: EmbeddingResponse, vectors: Vectors, as_base64: bool) -> bytes:
    """The frame's JSON with its empty ``data`` filled."""
    before, after = frame.model_dump_json(by_alias=True).encode().split(b'"data":[]')
    return b"".join([before, b'"data":[', b",".join(_places(vectors, as_base64)), b"]", after])


def _places(vectors: Vectors, as_base64: bool) -> Iterator[bytes]:
    for index, vector in enumerate(np.ascontiguousarray(vectors, dtype="<f4")):
        coded = base64.b64encode(vector.tobytes()).decode() if as_base64 else vector.tolist()
        yield to_json(Embedding.model_construct(object="embedding", index=index, embedding=coded))
