"""What a model folder says about how it embeds, in whichever of four dialects it says so.

1. ``gritkit_config.json``: gritkit's own. 2. ``modules.json``: sentence-transformers (e5-mistral, SFR, gte-Qwen,
Qwen3-Embedding and the like). 3. A config that names GritLM's code. 4. Nothing: a plain language model, embedded
bidirectionally with the mean.

This module knows nothing about weights or tokenizers. ``read`` gives a file's text or None, from a folder or a hub.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from gritkit.config import FILE_NAME, EmbeddingConfig, Pooling
from gritkit.errors import CheckpointError
from gritkit.prompts import GRIT

ReadFile = Callable[[str], str | None]

_POOLING: dict[str, Pooling] = {
    "mean": "mean",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
    "cls": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_cls_token": "cls",
}
# Architectures that exist only to attend both ways (LLM2Vec's folders carry such names).
_BIDIRECTIONAL_NAMES = ("Encoder", "BiModel", "BiForMNTP", "Bidirectional")


def recognise(read: ReadFile, where: str, context_length: int) -> EmbeddingConfig:
    """The embedding configuration of a folder. Raises CheckpointError for one that gritkit would apply wrongly."""
    own = read(FILE_NAME)
    if own is not None:
        return EmbeddingConfig.from_json(own, f"{where}/{FILE_NAME}")
    limit = min(context_length, 8192)
    config = _json(read, "config.json", where) or {}
    modules = _json(read, "modules.json", where)
    if modules is not None:
        return _from_sentence_transformers(read, where, modules, config, limit)
    if "gritlm" in json.dumps(config.get("auto_map", "")).lower():
        return EmbeddingConfig(prompt_format="grit", embedding_window="full", max_length=min(limit, 2048))
    return EmbeddingConfig(
        embedding_attention="bidirectional", max_length=limit, embedding_window=_window(config, "exclusive")
    )


def _window(config: dict[str, Any], otherwise: Any) -> Any:
    return "exclusive" if config.get("use_bidirectional_attention") else otherwise


def _from_sentence_transformers(
    read: ReadFile, where: str, modules: Any, config: dict[str, Any], limit: int
) -> EmbeddingConfig:
    pooling: Pooling | None = None
    for module in modules:
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        path = str(module.get("path", ""))
        if kind == "Pooling":
            pooling = _pooling(_json(read, f"{path}/config.json", where) or {}, where)
        elif kind not in ("Transformer", "Normalize"):
            raise CheckpointError(f"{where} has a sentence-transformers module {kind!r}, which gritkit does not apply")
    if pooling is None:
        raise CheckpointError(f"{where}/modules.json has no Pooling module")
    settings = _json(read, "sentence_bert_config.json", where) or {}
    prompts = (_json(read, "config_sentence_transformers.json", where) or {}).get("prompts") or {}
    return EmbeddingConfig(
        embedding_attention="bidirectional" if _bidirectional(config) else "causal",
        embedding_window=_window(config, "inclusive"),
        pooling=pooling,
        prompt_format=_format([str(prompt) for prompt in prompts.values()], pooling),
        max_length=min(int(settings.get("max_seq_length") or limit), limit),
    )


def _pooling(config: dict[str, Any], where: str) -> Pooling:
    mode = config.get("pooling_mode")
    names = [mode] if isinstance(mode, str) else mode
    if names is None:
        names = [name for name, on in config.items() if name.startswith("pooling_mode_") and on]
    if len(names) != 1 or names[0] not in _POOLING:
        raise CheckpointError(f"{where} pools by {names}; gritkit has {', '.join(sorted(set(_POOLING.values())))}")
    return _POOLING[names[0]]


def _bidirectional(config: dict[str, Any]) -> bool:
    if config.get("is_causal") is False or config.get("use_bidirectional_attention"):
        return True
    names = " ".join([*map(str, config.get("architectures") or ()), json.dumps(config.get("auto_map", ""))])
    return any(name in names for name in _BIDIRECTIONAL_NAMES)


def _format(prompts: list[str], pooling: Pooling) -> str:
    if any(GRIT.query.strip() in prompt for prompt in prompts):
        return "grit"
    if any(prompt.startswith("Instruct:") for prompt in prompts):
        return "instruct-query"
    if any(prompt.startswith("query: ") for prompt in prompts):
        return "e5"
    return "instruct-query" if pooling == "last" else "plain"


def _json(read: ReadFile, name: str, where: str) -> Any:
    text = read(name)
    if text is None:
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{where}/{name} is not JSON: {error}") from None
