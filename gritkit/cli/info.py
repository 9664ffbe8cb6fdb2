"""``gritkit info``: what a model is, how it embeds, and what the probes at load measured.

This module knows nothing about how any of it is done.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gritkit.cli import options
from gritkit.cli.loading import open_model
from gritkit.cli.output import to_json, write

if TYPE_CHECKING:
    from gritkit.model import GritModel
    from gritkit.rag.verdicts import Verdict


class Form(str, Enum):
    """One description: an object or lines."""

    json = "json"
    table = "table"


def info(
    source: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Model folder or hub id.")] = None,
    model: options.Model = None,
    format: Annotated[Form, typer.Option("--format", help="What to write.")] = Form.table,
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    prompt_format: options.PromptFormat = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Say what a model is, how it embeds and generates, and what was measured when it was loaded."""
    name = source or model
    grit = open_model(
        name, device=device, dtype=dtype, prompt_format=prompt_format, trust_remote_code=trust_remote_code
    )
    facts = {"model": name, **describe(grit)}
    if format is Form.json:
        write(to_json(facts) + "\n")
        return
    width = max(map(len, facts)) + 2
    write("".join(f"{label.replace('_', ' '):<{width}}{_shown(value)}\n" for label, value in facts.items()))


def describe(model: GritModel) -> dict[str, Any]:
    """Facts about a loaded model, JSON-ready."""
    from gritkit.rag import verdicts

    config = model.config.get_text_config()
    settings = model.embedding_config
    layer_types = getattr(config, "layer_types", None) or []
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if layer_types and "sliding_attention" not in layer_types:
        window = None
    return {
        "architecture": type(model.lm).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layers": config.num_hidden_layers,
        "dim": model.dim,
        "vocabulary": config.vocab_size,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "context_length": model.context_length,
        "sliding_window": window,
        "generates": model.writes,
        "pooling": settings.pooling,
        "embedding_attention": settings.embedding_attention,
        "embedding_window": settings.embedding_window,
        "prompt_format": settings.prompt_format,
        "embedding_max_length": settings.max_length,
        "matryoshka_dims": list(settings.matryoshka_dims),
        "chats": settings.prompt_format == "grit" or bool(getattr(model.tokenizer, "chat_template", None)),
        "documents_movable": model.probe.rope is not None,
        "not_movable_because": model.probe.movable_because or None,
        "causal_error": model.probe.causal_error,
        "leak": model.probe.leak,
        "kv_bytes_per_token": kv_bytes_per_token(config, model.dtype.itemsize),
        "reuse": [_verdict(one) for one in verdicts.load(model.fingerprint)],
    }


def _verdict(verdict: Verdict) -> str:
    """A line about one way of reuse that the gate has judged."""
    way = f"{verdict.reuse} {verdict.link_tokens}" if verdict.link_tokens else verdict.reuse
    state = "on" if verdict.allowed else "off by default"
    return f"{way} ({verdict.codec}, {verdict.join}): {state}; {verdict.reason}"


def kv_bytes_per_token(config: Any, itemsize: int) -> int:
    """Bytes of the keys and values of one token, all layers."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * itemsize)


def _shown(value: Any) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.1e}"
    if isinstance(value, list):
        return ("\n" + " " * 4 if any(isinstance(one, str) for one in value) else ", ").join(map(str, value))
    return str(value)


app = options.app_of(info)
