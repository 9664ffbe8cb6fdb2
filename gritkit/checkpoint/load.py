"""Weights and tokenizer of a folder or hub id: safetensors only, and no code of the checkpoint unless asked for.

This module knows nothing about what the model will be used for.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils.hub import cached_file

from gritkit.attention import NAME
from gritkit.checkpoint.recognise import recognise
from gritkit.config import EmbeddingConfig
from gritkit.errors import CheckpointError, GritkitError, InputError, MissingExtraError
from gritkit.files import resolve

_log = logging.getLogger("gritkit")
HEAD_KEYS = ("lm_head.weight", "embed_out.weight", "output.weight")
"""What architectures call the weights of their language-model head."""


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory."""

    lm: Any
    tokenizer: PreTrainedTokenizerBase
    config: EmbeddingConfig
    writes: bool
    """Whether the checkpoint has a language-model head; embedding-only ones cannot generate."""
    files: tuple[Path, ...]
    """What the weights were read from."""


def load(
    source: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype,
    device: str | torch.device | None,
    device_map: Any,
    quantization: str | None,
    adapter: str | os.PathLike[str] | None,
    revision: str | None,
    trust_remote_code: bool,
) -> Loaded:
    """Read everything once.

    Raises:
        CheckpointError: no such folder or id; no safetensors; code of its own without ``trust_remote_code=True``;
            weights that are missing or do not fit.
        InputError: for an unknown dtype, device or quantization.
        MissingExtraError: quantization without bitsandbytes.
    """
    name, folder = _locate(source)
    reader = _Reader(name, folder, revision)
    _refuse_code(reader, trust_remote_code)
    _refuse_pickles(folder)
    common = {"revision": revision, "trust_remote_code": trust_remote_code}
    kwargs: dict[str, Any] = {"dtype": _dtype(dtype), "use_safetensors": True, "attn_implementation": NAME, **common}
    if quantization is not None:
        kwargs["quantization_config"] = _quantization(quantization)
    if device_map is not None:
        if device is not None:
            raise InputError("give device or device_map, not both")
        kwargs["device_map"] = device_map
    elif quantization is not None:
        kwargs["device_map"] = {"": str(device or best_device())}
    try:
        # An own config object per model: transformers writes to the one it is given.
        config = AutoConfig.from_pretrained(name, **common)
        # How texts attend is the plan's business (``recognise`` reads these from the file); all else is causal.
        for field, causal in (("is_causal", True), ("use_bidirectional_attention", False)):
            if getattr(config, field, causal) is not causal:
                setattr(config, field, causal)
        made: Any = AutoModelForCausalLM.from_pretrained(name, config=config, output_loading_info=True, **kwargs)
        lm, info = made
        # A tokenizer of one's own beside a Qwen2 config would be rebuilt as Qwen2's: AutoTokenizer goes by model type.
        own = "TokenizersBackend" in (reader.read("tokenizer_config.json") or "")
        maker: Any = PreTrainedTokenizerFast if own else AutoTokenizer
        tokenizer = maker.from_pretrained(name, **common)
    except GritkitError:
        raise
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RuntimeError,
        ImportError,
        SafetensorError,
        StrictDataclassError,
    ) as error:
        raise CheckpointError(f"cannot load {name!r}: {_first_line(error)}") from error
    _keep_unpacked(lm)
    missing = set(info["missing_keys"])
    headless = {key for key in missing if key in HEAD_KEYS}
    if missing - headless or info["mismatched_keys"]:
        wrong = sorted(map(str, (missing - headless) or info["mismatched_keys"]))
        raise CheckpointError(
            f"{name!r} lacks {len(wrong)} of its weights (first: {wrong[0]}): the folder is incomplete"
        )
    if adapter is not None:
        lm = _with_adapter(lm, adapter)
    if "device_map" not in kwargs:
        try:
            lm = lm.to(device or best_device())
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"device={str(device)!r} is not usable here: {_first_line(error)}") from None
    context = int(getattr(config.get_text_config(), "max_position_embeddings", None) or 1 << 30)
    files = (*reader.weights(), *(resolve(adapter).glob("*.safetensors") if adapter is not None else ()))
    return Loaded(lm.eval(), tokenizer, recognise(reader.read, name, context), not headless, files)


def _keep_unpacked(lm: Any) -> None:
    """4-bit layers as they were loaded, on CPUs with AVX512-BF16 too.

    There bitsandbytes packs a layer anew when it first infers. Packed, it passes no gradient to its input, and
    ``state_dict()`` unpacks it with the scales of its blocks turned (0.50), so that its weights are others afterwards.
    """
    for module in lm.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def best_device() -> str:
    """``cuda``, ``mps`` or ``cpu``, whichever is there first."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


@dataclass(frozen=True)
class _Reader:
    """Small text files of a checkpoint, from its folder or the hub's cache."""

    name: str
    folder: Path | None
    revision: str | None

    def weights(self) -> list[Path]:
        """The files of the weights."""
        config = self._path("config.json")
        return [] if config is None else sorted(config.parent.glob("*.safetensors"))

    def read(self, file: str) -> str | None:
        path = self._path(file)
        if path is None or not path.is_file():
            return None
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path} is not UTF-8 text: {error}") from None

    def _path(self, file: str) -> Path | None:
        if self.folder is not None:
            return self.folder / file
        needed = file == "config.json"  # without it nobody need ask the hub for the rest, five times each
        try:
            found = cached_file(
                self.name, file, revision=self.revision, _raise_exceptions_for_missing_entries=needed,
                _raise_exceptions_for_connection_errors=needed, _raise_exceptions_for_gated_repo=False,
            )  # fmt: skip
        except (OSError, ValueError) as error:  # no such id, or not the form of one
            raise CheckpointError(f"no folder {self.name!r} here, and the hub: {_first_line(error)}") from None
        return Path(found) if found else None


def _locate(source: str | os.PathLike[str]) -> tuple[str, Path | None]:
    """(name for transformers, folder if it is one)."""
    path = resolve(source)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise CheckpointError(f"{path} is a folder without config.json: not a model")
        return str(path), path
    text = os.fspath(source)
    if path.exists() or text.startswith((".", "/", "~")) or text.count("/") > 1 or not isinstance(source, str):
        raise CheckpointError(f"no model folder at {path}")
    return text, None


def _refuse_code(reader: _Reader, trust_remote_code: bool) -> None:
    """Before anything of the checkpoint is imported: does it need code of its own?"""
    if trust_remote_code:
        return
    text = reader.read("config.json")
    try:
        config = json.loads(text) if text else {}
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{reader.name}/config.json is not JSON: {error}") from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if isinstance(config, dict) and config.get("auto_map") and kind not in CONFIG_MAPPING:
        raise CheckpointError(
            f"{reader.name!r} (model type {kind!r}) runs only with Python code that it brings along; "
            "read that code, then pass trust_remote_code=True"
        )


def _refuse_pickles(folder: Path | None) -> None:
    if folder is None or any(folder.glob("*.safetensors")):
        return
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"{folder} has only pickled weights ({pickled[0]}), which can run code when loaded: "
            "convert them to safetensors"
        )
    raise CheckpointError(f"{folder} has no weights: no *.safetensors file in it")


def _dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    if not isinstance(dtype, str):
        raise InputError(f"dtype={dtype!r} is unknown; use auto, float32, bfloat16 or float16")
    short = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}.get(dtype, dtype)
    found = getattr(torch, short, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(f"dtype={dtype!r} is unknown; use auto, float32, bfloat16 or float16")
    return found


def _quantization(name: str) -> BitsAndBytesConfig:
    if name not in ("int8", "int4"):
        raise InputError(f"quantization={name!r} is neither 'int8' nor 'int4'")
    try:
        import bitsandbytes  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
    except ImportError:
        raise MissingExtraError("bitsandbytes", "quantization") from None
    if name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call,unused-ignore]
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call,unused-ignore]
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )


def _with_adapter(lm: Any, adapter: str | os.PathLike[str]) -> Any:
    from peft import PeftModel

    folder = resolve(adapter)
    if not (folder / "adapter_config.json").is_file() or not (folder / "adapter_model.safetensors").is_file():
        raise CheckpointError(f"{folder} is not an adapter: it needs adapter_config.json and adapter_model.safetensors")
    try:
        return PeftModel.from_pretrained(lm, str(folder))
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"the adapter {folder} does not fit this model: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
