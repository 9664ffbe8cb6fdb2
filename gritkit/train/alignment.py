"""Preference alignment with trl, DPO and KTO, beside which the model goes on learning to embed.

    align(model, "dpo", "pairs.jsonl", output="out/dpo", keep=Keep("embedding.jsonl"), evaluation="held-out.jsonl")

    dpo   {"prompt": str | [messages], "chosen": str, "rejected": str}
    kto   {"prompt": str | [messages], "completion": str, "label": true | false}, or the pairs of dpo taken apart

The preference loss is trl's, on the language model inside: without a plan its attention is plainly causal. Prompts
stand in the model's own chat format and are no targets. In every step the contrastive loss of one batch of embedding
records may be added, through ``GritModel.forward`` as in any training here: alignment alone wears the vectors out.

The reference is the model before the first step. Its log-probabilities are computed then, once for all records: no
second copy of the weights, and the same for full training and adapters.

This module knows nothing about kernels, file formats or what preferences mean.
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from gritkit.batch import token_budget
from gritkit.data import (
    Data,
    EmbeddingRecord,
    Lengths,
    Mixer,
    PackedBatch,
    Source,
    load,
    pack_batch,
    share_of,
    tokenise,
)
from gritkit.data.reading import Sources, data_set, file_rows, located
from gritkit.data.sources import Problems
from gritkit.errors import GritkitError, InputError, MissingExtraError, RecordError
from gritkit.files import resolve, write_atomic
from gritkit.losses import InfoNCE, NextToken
from gritkit.model import GritModel
from gritkit.prompts import Message
from gritkit.tokens import Tokens
from gritkit.train.adapters import save_adapter
from gritkit.train.callbacks import Progress
from gritkit.train.checkpoints import is_sharded
from gritkit.train.evaluation import evaluate, load_held_out
from gritkit.train.step import Objective, unified_step
from gritkit.train.world import World

Method = Literal["dpo", "kto"]
RESULTS = "alignment.json"
_FIGURES = ("ndcg_at_10", "recall_at_10")

_log = logging.getLogger("gritkit")


@dataclass(frozen=True)
class Keep:
    """The embedding records that every step learns from beside its preferences, and how."""

    data: Data
    weight: float = field(default=1.0, kw_only=True)
    """What the contrastive loss is multiplied by; the preference loss has 1."""
    batch_size: int = field(default=256, kw_only=True)
    num_hard_negatives: int = field(default=1, kw_only=True)
    temperature: float = field(default=0.02, kw_only=True)
    query_max_length: int = field(default=256, kw_only=True)
    """Tokens of a query; fewer where the model's context is shorter."""
    passage_max_length: int = field(default=2048, kw_only=True)

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise InputError(f"weight={self.weight} must be above 0; to align without embedding records, give no keep")


@dataclass(frozen=True)
class Aligned:
    """What a run measured."""

    log: list[dict[str, float]]
    """trl's figures of every step, ``loss_contrastive`` among them where embeddings were kept."""
    before: dict[str, float] | None
    """Held-out retrieval (nDCG@10, recall@10) of the model as it came; None without ``evaluation``."""
    after: dict[str, float] | None


def align(
    model: GritModel,
    method: Method,
    data: Data,
    *,
    output: str | os.PathLike[str],
    keep: Keep | None = None,
    evaluation: Data | None = None,
    max_length: int = 1024,
    recompute: bool = False,
    save: bool = True,
    **settings: Any,
) -> Aligned:
    """Align ``model`` in place and save it to ``output/model``; the figures go to ``output/alignment.json``.

    ``settings`` are those of trl's ``DPOConfig`` or ``KTOConfig`` (``beta``, ``learning_rate``, ``max_steps``,
    ``per_device_train_batch_size``, ...). An answer longer than ``max_length`` allows, its prompt included, is cut. An
    adapter is trained where the model has one, and merged when it is saved; on a quantised base it is saved to
    ``output/adapter`` instead. ``recompute`` runs activations again in the backward pass: less memory for a third more
    work. In several processes (DDP) each aligns with its share of ``data``, and embedding batches are shared.

    Raises:
        RecordError: naming every record that cannot be used, before anything trains.
        InputError: for settings that cannot be. GritkitError: when the contrastive loss is not finite.
        MissingExtraError: without trl.
    """
    if method not in get_args(Method):
        raise InputError(f"method={method!r} is none of {', '.join(map(repr, get_args(Method)))}")
    if not model.writes:
        raise InputError("this checkpoint has no language-model head: there is nothing to align")
    folder = resolve(output)
    arguments = _arguments(method, folder, recompute, settings)
    examples = _examples(method, data, model.tokens, min(max_length, model.context_length))
    held_out = None if evaluation is None else load_held_out(evaluation, model.tokens, _lengths(model))
    world = World.here(arguments.device)  # which stands up the process group, where there is one
    beside = None if keep is None else _Beside(model, keep, arguments.seed, world)
    budget = token_budget(model.device)
    before = None if held_out is None else evaluate(model, held_out, budget)
    log = _run(model, method, arguments, examples, beside)
    after = None if held_out is None else evaluate(model, held_out, budget)
    aligned = Aligned(log, before, after)
    if before is not None and after is not None:
        told = ", ".join(f"{name} {before[name]:.4f} -> {after[name]:.4f}" for name in _FIGURES if name in before)
        _log.info("held-out retrieval before -> after alignment: %s", told)
    if save and world.rank == 0:
        if getattr(model._backbone.base, "is_quantized", False):  # merged, it would be rounded to the base's few bits
            save_adapter(model, folder / "adapter")
        else:
            model.merge_adapter()
            model.save_pretrained(folder / "model")
        write_atomic(folder / RESULTS, (json.dumps(vars(aligned), indent=1) + "\n").encode())
    world.wait()
    return aligned


def _lengths(model: GritModel, query: int = 256, passage: int = 2048) -> Lengths:
    query, passage = min(query, model.context_length), min(passage, model.context_length)
    return Lengths(query=query, passage=passage, generative=passage)


def _arguments(method: Method, folder: Path, recompute: bool, settings: Mapping[str, Any]) -> Any:
    """trl's configuration, with what is gritkit's to decide."""
    kind = _trl().DPOConfig if method == "dpo" else _trl().KTOConfig
    known = set(kind.__dataclass_fields__)
    given: dict[str, Any] = {"report_to": "none", "save_strategy": "no", "logging_steps": 1}
    given |= {"dataloader_pin_memory": torch.cuda.is_available(), **settings}
    name = "activation" if "activation_checkpointing" in known else "gradient"  # of transformers before 5.23
    decided: dict[str, Any] = {
        "output_dir": str(folder),
        "max_length": None,  # records are cut where they are tokenised
        "precompute_ref_log_probs": True,
        f"{name}_checkpointing": recompute,
        f"{name}_checkpointing_kwargs": {"use_reentrant": False},  # the other kind is wrong under attention plans
    }
    for name in decided:
        if name in settings:
            raise InputError(f"{name}={settings[name]!r} is not to be set: gritkit decides it")
    unknown = sorted(set(given) - known)
    if unknown:
        raise InputError(f"{unknown[0]!r} is no setting of trl's {kind.__name__}")
    arguments = kind(**given, **decided)
    if method == "kto" and arguments.per_device_train_batch_size < 2:
        raise InputError("per_device_train_batch_size=1: KTO pairs the prompts of a batch with each other's answers")
    return arguments


def _trl() -> Any:
    try:
        return importlib.import_module("trl")
    except ImportError:
        raise MissingExtraError("trl", "align") from None


def _run(
    model: GritModel, method: Method, arguments: Any, examples: list[dict[str, Any]], beside: _Beside | None
) -> list[dict[str, float]]:
    """Train the language model inside by trl; afterwards nothing of the Trainer is left on it."""
    from datasets import Dataset

    trl = _trl()

    rows = [examples[i] for i in np.random.default_rng(arguments.seed).permutation(len(examples))]
    if method == "kto":
        rows = _with_other_answers(rows, arguments.per_device_train_batch_size)
    base = trl.DPOTrainer if method == "dpo" else trl.KTOTrainer
    kind = type(f"Aligning{base.__name__}", (_LearnsBeside, base), {})
    lm: Any = model.lm
    modules = [lm, model._backbone.base]
    configs = [(model.config, "use_cache"), *((one, "pad_token_id") for one in _configs(model))]
    stated = [(config, name, getattr(config, name, None)) for config, name in configs]
    pad_token = model.tokenizer.pad_token
    try:
        trainer: Any = kind(
            model=lm, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=model.tokenizer
        )
        trainer.beside = beside
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(Progress())
        trainer.train()
    finally:
        for module in modules:  # trl and accelerate put forwards of their own on the object
            for name in ("forward", "_original_forward"):
                module.__dict__.pop(name, None)
        for config, name, value in stated:
            setattr(config, name, value)
        model.tokenizer.pad_token = pad_token
        if "ref" in getattr(lm, "peft_config", {}):  # trl's copy of the adapter that was there
            lm.delete_adapter("ref")
        model.activation_checkpointing_disable()
        model.eval()
        model.forget_fingerprint()
    return [dict(entry) for entry in trainer.state.log_history if "loss" in entry]


def _configs(model: GritModel) -> list[Any]:
    """Those that trl writes the padding token to."""
    generation = getattr(model._backbone.base, "generation_config", None)
    return [model.config.get_text_config(), *([] if generation is None else [generation])]


# -- the contrastive part --------------------------------------------------------------------------------------------


class _Beside:
    """Batches of embedding records, and what one of them adds to a step."""

    def __init__(self, model: GritModel, keep: Keep, seed: int, world: World) -> None:
        self._model, self._world = model, world
        self._objective = Objective(
            contrastive=InfoNCE(temperature=keep.temperature), next_token=NextToken(), embedding_weight=keep.weight
        )
        sources: Sources = [_without_answers(source) for source in load(keep.data)]
        self._mixer = Mixer(
            tokenise(sources, model.tokens, _lengths(model, keep.query_max_length, keep.passage_max_length)),
            embedding_batch_size=keep.batch_size,
            generative_batch_size=1,
            num_hard_negatives=keep.num_hard_negatives,
            seed=seed,
        )
        self._budget = token_budget(model.device)

    def _draw(self) -> PackedBatch:
        """This process's share of the next batch."""
        shares = self._objective.next_token.shares
        return pack_batch(share_of(self._mixer.draw(), shares, self._world.rank, self._world.size), self._budget)

    def backward(self, accelerator: Any) -> float:
        """Add the weighted gradient of the next batch; its loss.

        The passes go past the wrapper that reduces gradients over processes: it does so when trl's follow.
        """
        if is_sharded(self._model):
            raise InputError("weights that are spread over devices cannot learn beside trl's steps: leave keep out")
        with accelerator.autocast():
            losses = unified_step(self._model, self._draw(), self._objective, accelerator.backward, world=self._world)
        loss = losses.contrastive
        assert loss is not None
        if not math.isfinite(loss.item()):
            raise GritkitError(f"the contrastive loss is {loss.item()}: lower learning_rate, or look at the data")
        return loss.item()


def _without_answers(source: Source[Any]) -> Source[EmbeddingRecord]:
    if source.kind != "embedding":
        raise InputError(f"{source.name} holds records to write, not to embed: preferences alone teach writing here")
    return replace(source, records=[replace(record, answer=None) for record in source.records])


class _LearnsBeside:
    """What is added to trl's trainers."""

    beside: _Beside | None = None

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Records are in the model's tokens already."""
        return dataset

    def _send_telemetry(self) -> None:
        """None."""

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """trl's step and, with the last of its batches before the optimizer's, one of embedding records."""
        this = cast(Any, self)
        if self.beside is not None and this.accelerator.sync_gradients:
            this._metrics["train"]["loss_contrastive"].append(self.beside.backward(this.accelerator))
        loss: Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        return loss


# -- records ---------------------------------------------------------------------------------------------------------


def _examples(method: Method, data: Data, tokens: Tokens, max_length: int) -> list[dict[str, Any]]:
    """Records in the form of trl's collators: ids of the prompt, and of one answer or two."""
    problems = Problems()
    examples: list[dict[str, Any]] = []
    for where, row in _rows(data):
        try:
            if isinstance(row, RecordError):
                raise row
            if not isinstance(row, Mapping):
                raise RecordError(f"{type(row).__name__} instead of an object")
            examples += (_pairs if method == "dpo" else _judged)(row, tokens, max_length)
        except (InputError, RecordError) as error:
            problems.add(where, str(error))
    problems.check()
    if not examples:
        raise InputError("data is empty: there is nothing to align with")
    return examples


def _rows(data: Data) -> Iterator[tuple[str, Any]]:
    """(place for messages, record)."""
    if not isinstance(data, (str, os.PathLike)):
        if isinstance(data, (bytes, Mapping)) or not isinstance(data, Iterable):
            raise InputError(f"data must be a path, a data set's id or records, not {type(data).__name__}")
        yield from ((f"records:{number}", row) for number, row in enumerate(data))
        return
    for place in located(data):
        is_file = isinstance(place, Path) and place.is_file()
        rows = file_rows(cast(Path, place)) if is_file else enumerate(data_set(place))
        name = place if isinstance(place, str) else place.name
        yield from ((f"{name}:{number}", row) for number, row in rows)


def _pairs(row: Mapping[str, Any], tokens: Tokens, max_length: int) -> list[dict[str, Any]]:
    (chosen, start), (rejected, other) = (_written(row, name, tokens) for name in ("chosen", "rejected"))
    # where an answer's first letters merged with the prompt's last, both answers begin with what they do not share
    same = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), len(chosen))
    if chosen == rejected:
        raise RecordError("chosen and rejected read alike: there is nothing to prefer")
    start = min(start, other, same)
    _check_room(start, max_length)
    return [
        {
            "prompt_ids": chosen[:start],
            "chosen_ids": chosen[start:max_length],
            "rejected_ids": rejected[start:max_length],
        }
    ]


def _judged(row: Mapping[str, Any], tokens: Tokens, max_length: int) -> list[dict[str, Any]]:
    if "chosen" in row or "rejected" in row:
        answers = [("chosen", True), ("rejected", False)]
    else:
        if not isinstance(row.get("label"), bool):
            raise RecordError(f"label is {row.get('label')!r:.40}, not true or false")
        answers = [("completion", row["label"])]
    examples = []
    for name, label in answers:
        ids, start = _written(row, name, tokens)
        _check_room(start, max_length)
        examples.append({"prompt_ids": ids[:start], "completion_ids": ids[start:max_length], "label": label})
    return examples


def _written(row: Mapping[str, Any], name: str, tokens: Tokens) -> tuple[list[int], int]:
    """(ids of a prompt with one of its answers, place where the answer begins)."""
    prompt, answer = row.get("prompt"), row.get(name)
    if not isinstance(prompt, (str, Sequence)) or not prompt:
        raise RecordError(f"prompt is {prompt!r:.40}, not a text or a list of messages")
    if not isinstance(answer, str) or not answer.strip():
        raise RecordError(f"{name} is {answer!r:.40}, not a text with words")
    messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if tokens.format.user is None:  # the checkpoint's own chat template
        if tokens.eos_id is None:
            raise InputError("the tokenizer has no end-of-text token to end an answer with")
        opening = tokens.chat_prompt(messages)
        return [*opening, *tokens.encode(answer), tokens.eos_id], len(opening)
    example = tokens.chat_example([*messages, {"role": "assistant", "content": answer}])
    return example.ids.tolist(), int(np.flatnonzero(~example.loss_mask)[-1]) + 1  # answers before it are prompt


def _check_room(start: int, max_length: int) -> None:
    if start >= max_length:
        raise RecordError(f"the prompt alone is {start} tokens long and max_length is {max_length}: raise it")


def _with_other_answers(rows: list[dict[str, Any]], batch_size: int) -> list[dict[str, Any]]:
    """Each prompt with the answer before it in its batch too, from which KTO estimates how far the model has moved."""
    result = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        result += [{**row, "KL_completion_ids": batch[i - 1]["completion_ids"]} for i, row in enumerate(batch)]
    return result
