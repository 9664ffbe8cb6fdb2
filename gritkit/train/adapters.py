"""Low-rank adapters: put on any backbone, also a quantised one, saved beside it, and checked against their merger.

    add_lora(model, r=16, alpha=64)             only the adapter's weights train from here on
    save_adapter(model, "run/adapter")          stands alone with its base
    check_merge(model, "run/adapter", texts)    adapter on its base = model in memory = merged copy

LoRA (Hu et al. 2021, arXiv 2106.09685) adds ``alpha / r * B A`` to a weight, B starting at zero; QLoRA (Dettmers et al.
2023, arXiv 2305.14314) does so over a base of 4 bits. Nothing of the base is cast to fp32, as peft's
``prepare_model_for_kbit_training`` would: the norms of transformers' models compute in fp32 by themselves.
``GritModel.activation_checkpointing_enable`` lets gradients into the frozen base.

This module knows nothing about steps, losses or data.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gritkit.backbone import Backbone
from gritkit.checkpoint.load import load
from gritkit.config import FILE_NAME, EmbeddingConfig
from gritkit.errors import CheckpointError, GritkitError, InputError
from gritkit.files import resolve, staged_folder
from gritkit.model import GritModel
from gritkit.train.world import World

ALL_LINEAR = "all-linear"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Relative differences that rounding alone explains; weights of few bits round anew when adapters are merged."""
_EXPERT_NAMES = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
"""What experts were called before transformers stacked them. peft 0.21 turns these names, wherever they stand, into
those of stacked weights; a shared expert or a layer without experts that bears them is passed by."""

_log = logging.getLogger("gritkit")


def add_lora(
    model: GritModel,
    *,
    r: int = 16,
    alpha: float = 64,
    dropout: float = 0.1,
    targets: Literal["all-linear"] | Sequence[str] = ALL_LINEAR,
    fp32: bool = True,
    seed: int = 0,
) -> None:
    """Put a fresh adapter on the model, in place; vectors and logits are what they were until it is trained.

    ``targets``: every linear layer and the stacked weights of experts, routers and the output head left out; or names
    of layers (``["q_proj", "v_proj"]``), routers among them where they are named. ``fp32``: the adapter's weights are
    fp32 over a base of 16 bits or fewer, which would swallow small updates.

    Raises:
        InputError: where there is an adapter already, for a value that cannot be, a layer that there is not, and
            ``dropout`` on experts, whose stacked weights have no input of their own to drop.
    """
    from peft import LoraConfig, get_peft_model

    if has_adapter(model):
        raise InputError("the model has an adapter already: merge it first with model.merge_adapter()")
    if r < 1 or not alpha > 0 or not 0 <= dropout < 1:
        raise InputError(f"r={r} must be at least 1, alpha={alpha} above 0 and dropout={dropout} from 0 to below 1")
    modules, parameters = _targets(model, targets)
    if parameters and dropout:
        raise InputError(
            f"dropout={dropout} cannot be applied to {parameters[0].rpartition('.')[2]!r}, weights of all experts in "
            "one: set it to 0, or name the layers to adapt without it in targets"
        )
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=r,
        lora_alpha=cast(int, alpha),  # peft's annotation; it divides by r only
        lora_dropout=dropout,
        target_modules=modules,
        target_parameters=parameters or None,
        fan_in_fan_out=any(isinstance(model.lm.get_submodule(name), Conv1D) for name in modules),
    )
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        _hold(model, get_peft_model(cast(Any, model.lm), config, autocast_adapter_dtype=fp32))


def has_adapter(model: GritModel) -> bool:
    """Whether there is an adapter on the model."""
    return hasattr(model.lm, "peft_config")


def save_adapter(
    model: GritModel, folder: str | os.PathLike[str], *, state_dict: dict[str, Tensor] | None = None
) -> None:
    """Write the adapter, the tokenizer and ``gritkit_config.json``: all of the model that its base does not hold.

    ``state_dict``: the language model's weights where the model itself does not hold them whole (FSDP).

    Raises:
        InputError: where there is no adapter. CheckpointError: where the folder holds something else.
    """
    if not has_adapter(model):
        raise InputError("the model has no adapter to save: add_lora(model) puts one on it")
    target = resolve(folder)
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not (target / ADAPTER_CONFIG).is_file())):
        raise CheckpointError(f"{target} is there and holds no adapter: choose another folder, it would be replaced")
    with staged_folder(target) as stage:
        given = {} if state_dict is None else {"state_dict": state_dict}
        # "auto" would ask the hub whether the base's vocabulary was another; embeddings are never adapted here
        cast(Any, model.lm).save_pretrained(stage, save_embedding_layers=False, **given)
        (stage / "README.md").unlink(missing_ok=True)  # peft's form of a model card, not filled in
        model.tokenizer.save_pretrained(stage)
        (stage / FILE_NAME).write_text(model.embedding_config.to_json(), encoding="utf-8")


def load_adapter_weights(model: GritModel, folder: str | os.PathLike[str]) -> None:
    """The weights of a saved adapter into that of the model, which goes on training them.

    Raises:
        CheckpointError: where the folder holds no adapter, or one of other layers.
    """
    from peft import set_peft_model_state_dict

    if not has_adapter(model):
        raise InputError("the model has no adapter to load weights into: add_lora(model) puts one on it")
    path = resolve(folder)
    _check_adapter(path)
    try:
        result: Any = set_peft_model_state_dict(cast(Any, model.lm), load_file(path / ADAPTER_WEIGHTS))
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(f"the adapter {path} does not fit this model's: {str(error).splitlines()[0]}") from error
    missing = [key for key in result.missing_keys if "lora_" in key]
    if missing or result.unexpected_keys:
        wrong = (missing or result.unexpected_keys)[0]
        raise CheckpointError(f"the adapter {path} is of other layers than this model's (first: {wrong})")
    model.forget_fingerprint()


def load_adapted(
    folder: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    quantization: Literal["int8", "int4"] | None = None,
    dequantize: bool = False,
) -> GritModel:
    """A saved adapter on its base, which it names itself unless ``base`` is given; not to be trained on.

    ``dequantize``: the weights that quantising leaves, in ``dtype`` again, so that the adapter can be merged into them.

    Raises:
        CheckpointError: where the folder holds no adapter of gritkit's, or its base is not found or does not fit.
    """
    from peft import PeftModel

    path = resolve(folder)
    _check_adapter(path)
    config = EmbeddingConfig.from_json((path / FILE_NAME).read_text(encoding="utf-8"), str(path / FILE_NAME))
    named = json.loads((path / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not (base or named):
        raise CheckpointError(f"{path} does not name the model that it adapts: give base")
    loaded = load(
        base or named,
        dtype=dtype,
        device=device,
        device_map=None,
        quantization=quantization,
        adapter=None,
        revision=None,
        trust_remote_code=False,
    )
    lm = loaded.lm.dequantize() if quantization and dequantize else loaded.lm
    try:
        lm = PeftModel.from_pretrained(lm, str(path))
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"the adapter {path} does not fit {base or named}: {error}") from error
    return GritModel(lm.eval(), loaded.tokenizer, config, writes=loaded.writes)


def save_merged(
    model: GritModel, adapter: str | os.PathLike[str], folder: str | os.PathLike[str], texts: Sequence[str]
) -> None:
    """The model with its saved adapter merged, as a folder that everything loads, once :func:`check_merge` agrees on
    ``texts``; of a quantised base the weights that quantising left, in bf16. Every process must call it; the first one
    writes.

    Raises:
        GritkitError: where adapter and merged model differ.
    """
    check_merge(model, adapter, texts)
    world = World.here(model.device)
    if world.rank == 0:
        quantization = _quantization(model)
        dtype = model.dtype if quantization is None else torch.bfloat16
        merged = load_adapted(adapter, dtype=dtype, device="cpu", quantization=quantization, dequantize=True)
        merged.merge_adapter()
        merged.save_pretrained(folder)
    world.wait()


@torch.inference_mode()
def check_merge(
    model: GritModel,
    folder: str | os.PathLike[str],
    texts: Sequence[str],
    *,
    base: str | os.PathLike[str] | None = None,
    tolerance: float | None = None,
) -> float:
    """Compare a trained model with its saved adapter on its base, and with that merged; the largest difference.

    A difference is relative (root of squares over all texts), of vectors and of logits. ``tolerance``: None for what
    the model's precision explains. A quantised base is compared with its weights dequantised: they are what an adapter
    can be merged into. Takes the memory of a second model.

    Raises:
        GritkitError: where either differs by more, and by how much.
    """
    quantization = _quantization(model)
    allowed = _TOLERANCE.get(model.dtype, 5e-2) if tolerance is None else tolerance
    other = load_adapted(
        folder, base=base, dtype=model.dtype, device=model.device, quantization=quantization, dequantize=True
    )
    expected = _outputs(model, texts)
    largest = 0.0
    for what in ("the saved adapter on its base", "the adapter merged into its base"):
        for name, ours, theirs in zip(("vectors", "logits"), expected, _outputs(other, texts), strict=False):
            difference = float((ours - theirs).norm() / ours.norm())
            if not difference <= allowed:
                raise GritkitError(
                    f"{what} gives other {name} than the trained model: {difference:.1e} apart (relative), "
                    f"{allowed:.0e} allowed; do not use it before you know why, or set tolerance"
                )
            largest = max(largest, difference)
        other.merge_adapter()
    return largest


def _hold(model: GritModel, lm: nn.Module) -> None:
    """Make a wrapped language model the model's own."""
    lm.train(model.lm.training)  # fresh dropout layers are in training mode, whatever the model is in
    model.lm = lm
    model._backbone = Backbone(lm)
    model.forget_fingerprint()


def _check_adapter(path: Path) -> None:
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, FILE_NAME):
        if not (path / name).is_file():
            raise CheckpointError(f"{path} is not an adapter saved by gritkit: it lacks {name}")


def _targets(model: GritModel, given: str | Sequence[str]) -> tuple[list[str], list[str]]:
    """(linear layers, stacked parameters) to adapt, by their full names."""
    lm: Any = model.lm
    head = lm.get_output_embeddings()
    linear = {n: m for n, m in lm.named_modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not head}
    stacked = [name for name, parameter in lm.named_parameters() if parameter.dim() == 3]
    gates = [name for name, module in linear.items() if _is_gate(module, Backbone(lm).num_experts)]
    routers = [
        f"{name}.weight"
        for name, module in lm.named_modules()
        if stacked and "router" in type(module).__name__.lower() and name not in linear
    ]
    if given == ALL_LINEAR:
        linear = {name: module for name, module in linear.items() if name not in gates}
    if stacked:
        linear = _without_misread(linear)
    if given == ALL_LINEAR:
        return list(linear), stacked
    wanted = [given] if isinstance(given, str) else list(given)
    known = {
        **{name: (name, None) for name in linear},
        **{name: (None, name) for name in stacked},
        **{name.removesuffix(".weight"): (None, name) for name in routers},
    }
    leaves = sorted({name.rpartition(".")[2] for name in known})
    unknown = [name for name in wanted if name not in leaves]
    if unknown or not wanted:
        raise InputError(
            f"targets={given!r}: {'no layers' if not wanted else f'no layer is called {unknown[0]!r}'}; the layers are "
            f"{', '.join(leaves)} (the output head cannot be adapted)"
        )
    found = [place for name, place in known.items() if name.rpartition(".")[2] in wanted]
    return [module for module, _ in found if module], [parameter for _, parameter in found if parameter]


def _without_misread(linear: dict[str, Any]) -> dict[str, Any]:
    """Linear layers beside stacked experts whose names peft does not take for the experts' own."""
    misread = [name for name in linear if name.rpartition(".")[2] in _EXPERT_NAMES]
    if misread:
        _log.warning(
            "%d layers get no adapter (the first: %s): peft mistakes them for experts", len(misread), misread[0]
        )
    return {name: module for name, module in linear.items() if name not in misread}


def _is_gate(module: nn.Module, experts: int | None) -> bool:
    """Whether a layer of a mixture of experts says which expert, or how much of the shared one, a token gets."""
    return experts is not None and getattr(module, "out_features", None) in (1, experts)


def _quantization(model: GritModel) -> Literal["int8", "int4"] | None:
    stated = getattr(model.config, "quantization_config", None)
    if stated is None or not getattr(model._backbone.base, "is_quantized", False):
        return None
    return "int4" if getattr(stated, "load_in_4bit", False) else "int8"


def _outputs(model: GritModel, texts: Sequence[str]) -> tuple[Tensor, ...]:
    """Vectors of all texts and, where the model writes, their logits; each one long tensor on the CPU."""
    training = model.lm.training
    model.eval()
    try:
        vectors = torch.from_numpy(np.asarray(model.embed(texts, truncate=True), dtype=np.float64))
        if not model.writes:
            return (vectors.flatten(),)
        rows = [model.tokens.raw_prompt(text)[: model.context_length] for text in texts]
        passes = (model.lm(input_ids=torch.tensor([row], device=model.device), use_cache=False) for row in rows)
        return vectors.flatten(), torch.cat([one.logits.double().cpu().flatten() for one in passes])
    finally:
        model.train(training)
