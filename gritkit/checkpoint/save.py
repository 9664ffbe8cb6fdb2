"""Saving one folder that three libraries read alike.

At the root: plain Hugging Face (safetensors, tokenizer with the chat template), from which plain transformers
generates, and ``gritkit_config.json``. Beside it, for sentence-transformers: ``modules.json`` that points to ``st/``,
whose own ``config.json`` turns attention bidirectional and whose weight index points back to the root's safetensors.
(In the root's config that switch would break generation, and as a keyword it is silently ignored.)

The folder is staged and renamed, so it is whole or absent.

This module knows nothing about training or about models in memory beyond ``save_pretrained``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import PreTrainedTokenizerBase

from gritkit.checkpoint.load import HEAD_KEYS
from gritkit.config import FILE_NAME, EmbeddingConfig
from gritkit.errors import CheckpointError
from gritkit.files import staged_folder
from gritkit.prompts import prompt_format

_ST_POOLING = {"mean": "mean", "last": "lasttoken"}
_FOLDERS = ("st", "1_Pooling", "2_Normalize")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def save(
    folder: Path,
    lm: Any,
    tokenizer: PreTrainedTokenizerBase,
    config: EmbeddingConfig,
    *,
    state_dict: dict[str, Any] | None = None,
) -> None:
    """Write the whole folder; ``state_dict`` holds the weights where the model itself does not.

    Raises CheckpointError where ``folder`` holds something that is not a model.
    """
    check_target(folder)
    with staged_folder(folder) as stage:
        lm.save_pretrained(stage, **({} if state_dict is None else {"state_dict": state_dict}))
        tokenizer.save_pretrained(stage)
        (stage / FILE_NAME).write_text(config.to_json(), encoding="utf-8")
        if _means_the_same(tokenizer, config):
            _write_sentence_transformers(stage, config)


def check_target(folder: Path) -> None:
    """Raises CheckpointError where saving a model to ``folder`` would replace something that is not one."""
    if folder.exists():
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is a file, not a folder to save a model in")
        if any(folder.iterdir()) and not (folder / "config.json").is_file():
            raise CheckpointError(
                f"{folder} is not empty and holds no model: choose another folder, it would be replaced"
            )
        foreign = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name not in _FOLDERS)
        if foreign:
            raise CheckpointError(
                f"{folder} holds {foreign[0]!r}, which is no part of a model and would be lost: choose another folder"
            )


def _means_the_same(tokenizer: PreTrainedTokenizerBase, config: EmbeddingConfig) -> bool:
    """Whether sentence-transformers would pool the same tokens: it leaves a prompt out, but never a lone beginning,
    and it adds no end that the tokenizer does not add.
    """
    preset = prompt_format(config.prompt_format)
    special = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    if config.pooling == "mean":
        return bool(preset.passage and preset.query) or not special[0]
    return config.pooling in _ST_POOLING and (not preset.append_eos or bool(special[-1]))


def _write_sentence_transformers(stage: Path, config: EmbeddingConfig) -> None:
    modules = (("st", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    _write_json(
        stage / "modules.json",
        [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for index, (path, kind) in enumerate(modules)
        ],
    )
    preset = prompt_format(config.prompt_format)
    _write_json(
        stage / "config_sentence_transformers.json",
        {
            "prompts": {"query": preset.query, "document": preset.passage},
            "default_prompt_name": "document" if preset.passage else None,
            "similarity_fn_name": "cosine",
            "model_type": "SentenceTransformer",
        },
    )
    root = json.loads((stage / "config.json").read_text(encoding="utf-8"))
    size = root.get("hidden_size") or root.get("n_embd") or root.get("text_config", {}).get("hidden_size")
    pooling = {"embedding_dimension": size, "pooling_mode": _ST_POOLING[config.pooling], "include_prompt": False}
    (stage / "1_Pooling").mkdir()
    (stage / "2_Normalize").mkdir()
    _write_json(stage / "1_Pooling" / "config.json", pooling)
    inner = stage / "st"
    inner.mkdir()
    _write_json(inner / "config.json", _st_config(root, config))
    _write_json(inner / "sentence_bert_config.json", {"max_seq_length": config.max_length, "do_lower_case": False})
    for name in _TOKENIZER_FILES:
        if (stage / name).is_file():
            shutil.copyfile(stage / name, inner / name)
    weights = sorted(file.name for file in stage.glob("*.safetensors"))
    index = {key: f"../{name}" for name in weights for key in _keys(stage / name) if key not in HEAD_KEYS}
    _write_json(inner / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})


def _st_config(root: dict[str, Any], config: EmbeddingConfig) -> dict[str, Any]:
    """The root's config as sentence-transformers needs it to attend as gritkit does.

    transformers' own bidirectional window is inclusive (|q-k| <= W), so the exclusive rule is written as W - 1.
    """
    inner = dict(root)
    if config.embedding_attention == "bidirectional":
        inner["is_causal"] = False
        window = inner.get("sliding_window")
        if window and config.embedding_window == "exclusive":
            inner["sliding_window"] = window - 1
        elif window and config.embedding_window == "full":
            inner["sliding_window"] = None
            if inner.get("layer_types"):
                inner["layer_types"] = ["full_attention"] * len(inner["layer_types"])
    return inner


def _keys(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
