"""``/v1/models``: the base model and its adapters.

This module knows nothing about checkpoints.
"""

from __future__ import annotations

from fastapi import APIRouter

from gritkit_serve.routes.answers import adapter_of
from gritkit_serve.schemas.errors import ERRORS
from gritkit_serve.schemas.models import ModelCard, ModelFacts, ModelList
from gritkit_serve.service import Service, ServiceDep

router = APIRouter(tags=["OpenAI"], responses=ERRORS)


@router.get("/v1/models")
async def models(service: ServiceDep) -> ModelList:
    """The names that ``model`` may have: the base model first, then its adapters."""
    return ModelList(data=[_card(service, name) for name in (service.model_name, *service.engine.adapters)])


@router.get("/v1/models/{model:path}")
async def model(model: str, service: ServiceDep) -> ModelCard:
    """One of them."""
    adapter_of(service, model)
    return _card(service, model)


def _card(service: Service, name: str) -> ModelCard:
    grit = service.model
    config = grit.embedding_config
    return ModelCard(
        id=name,
        created=int(service.started),
        parent=None if name == service.model_name else service.model_name,
        gritkit=ModelFacts(
            writes=grit.writes,
            context_length=grit.context_length,
            dim=grit.dim,
            matryoshka_dims=list(config.matryoshka_dims),
            max_embedding_tokens=min(config.max_length, grit.context_length),
            prompt_format=config.prompt_format,
        ),
    )
