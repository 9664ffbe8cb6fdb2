"""The settings of a training run: transformers' own, with the defaults that GRIT wants, and those of the unified step.

This module knows nothing about models or data.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from typing import get_args

import torch
from transformers import TrainingArguments

from gritkit.errors import InputError
from gritkit.losses.next_token import Reduction
from gritkit.train.step import LossScale

_WITHOUT_EFFECT = {
    "gradient_checkpointing": "set recompute=True",
    "auto_find_batch_size": "memory is set by tokens_per_row",
    "dataloader_drop_last": "the last batch of an epoch is filled up",
    "label_smoothing_factor": "the losses are those of gritkit.losses",
    "neftune_noise_alpha": "the losses are those of gritkit.losses",
    "include_num_input_tokens_seen": "tokens_per_second is logged",
}


@dataclass(kw_only=True)
class TrainConfig(TrainingArguments):
    """Everything ``transformers.TrainingArguments`` knows (learning rate, schedule, bf16, saving, reporting, ...),
    and these.

    The global batch is the unit: it is cut into packed rows of ``tokens_per_row``, so there is no micro-batch to set.
    Fields are set when it is made and not changed later.

    Raises:
        InputError: for a value that cannot be, or settings that contradict each other.
    """

    output_dir: str | None = field(default=None)
    """Where checkpoints, the loss curves and, at the end, the folder ``model`` go. Required."""

    embedding_batch_size: int = field(default=256)
    """Queries of a contrastive batch; each meets the passages of all others. (The paper: 2048.)"""
    generative_batch_size: int = field(default=32)
    """Conversations or texts of a step. (The paper: 256.)"""
    num_hard_negatives: int = field(default=1)
    """Given negatives used of each embedding record, drawn anew each time."""
    query_max_length: int | None = field(default=None)
    """Tokens of a query, format and instruction included; None: 256, or the model's context where that is shorter."""
    passage_max_length: int | None = field(default=None)
    """Tokens of a passage; None: 2048, or the model's context where that is shorter."""
    generative_max_length: int | None = field(default=None)
    """Tokens of a generative example; None: 2048, or the model's context where that is shorter."""
    tokens_per_row: int | None = field(default=None)
    """Tokens of one pass of the model; None: what suits the device."""
    grad_cache: bool = field(default=True)
    """Whether texts to embed are run twice, so that memory does not grow with the batch; off, the activations of all
    of them are kept: faster, where they fit."""

    sampling: str | float | dict[str, float] = field(default="proportional")
    """Which source a contrastive batch is of: ``proportional`` uses every record once a cycle; a number draws sources
    by their size to that power; a dict gives their weights by name."""
    streaming: bool = field(default=False)
    """Whether records are read while training, for data larger than memory; every process reads its own share."""

    temperature: float = field(default=0.02)
    """What similarities are divided by in the contrastive loss."""
    in_batch_negatives: bool = field(default=True)
    """Whether a query meets the passages of other queries."""
    no_in_batch_negatives: list[str] = field(default_factory=list)
    """Names of sources whose queries meet their own passages only."""
    loss_scale: str = field(default="exact")
    """``gritlm``: the contrastive gradient over the number of processes, as the original GRIT code has it; ``exact``:
    the weights of both losses mean the same on any number."""
    next_token_loss: str = field(default="token")
    """``token``: the mean over tokens; ``sample``: over examples; ``mixed``: over groups of examples."""
    next_token_group: int = field(default=32)
    """Examples of a group of the ``mixed`` next-token loss."""
    router_weight: float = field(default=0.0)
    """Factor of the load-balancing loss, for mixture-of-experts models."""
    embedding_weight: float = field(default=1.0)
    """Factor of the contrastive loss in the total."""
    generative_weight: float = field(default=1.0)
    """Factor of the next-token loss in the total."""

    recompute: bool = field(default=False)
    """Whether activations are recomputed in the backward pass: less memory for a third more work."""
    gradient_figures_steps: int = field(default=0)
    """Every how many steps the gradient norms of both halves and their cosine are measured; 0: never. It takes the
    memory of one copy of the gradients, and leaves out batches with answers, whose rows have both losses."""
    plot: bool = field(default=True)
    """Whether the loss curves are drawn to ``losses.png`` at every save and at the end."""

    learning_rate: float = field(default=2e-5)
    warmup_steps: float = field(default=0.03)
    """Steps of warm-up; below 1, the share of all steps."""
    logging_steps: float = field(default=1)
    report_to: str | list[str] | None = field(default="none")
    """Nothing is reported anywhere unless a reporter is named."""
    remove_unused_columns: bool = field(default=False)
    logging_nan_inf_filter: bool = field(default=False)
    """A loss that is not finite stops the run instead of being smoothed over."""

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_losses()
        self._check_transformers_own()
        if not (torch.cuda.is_available() or torch.backends.mps.is_available()):
            self.use_cpu = True  # where there is nothing else, bf16 on the CPU needs no extra word
        # What transformers counts samples by; the batches themselves are made by gritkit.data.
        self.per_device_train_batch_size = self.embedding_batch_size
        # The sampler's place is in the checkpoint, so nothing has to be drawn again and thrown away on resume.
        self.ignore_data_skip = True
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            self.greater_is_better = not self.metric_for_best_model.endswith("loss")
        if self.disable_tqdm is None:
            self.disable_tqdm = not sys.stderr.isatty()
        super().__post_init__()  # type: ignore[no-untyped-call]

    def _check_sizes(self) -> None:
        if not self.output_dir:
            raise InputError("output_dir is missing: the folder that checkpoints and the model are written to")
        for name in ("embedding_batch_size", "generative_batch_size", "tokens_per_row", "next_token_group"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}={value} must be at least 1")
        for name in ("num_hard_negatives", "gradient_figures_steps", "dataloader_num_workers"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}={getattr(self, name)} must not be negative")
        for name in ("query_max_length", "passage_max_length", "generative_max_length"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise InputError(f"{name}={value} leaves no room for a token beside the beginning of the text")
        if self.max_steps == 0 or self.max_steps < -1:
            raise InputError(f"max_steps={self.max_steps} must be at least 1, or -1 for num_train_epochs")
        if self.max_steps == -1 and not self.num_train_epochs > 0:
            raise InputError(f"num_train_epochs={self.num_train_epochs} must be above 0")
        for name in ("seed", "data_seed"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 2**32:
                raise InputError(f"{name}={value} must be from 0 to 2^32 - 1")
        if not 0 <= self.learning_rate < math.inf:
            raise InputError(f"learning_rate={self.learning_rate} must be a number from 0")

    def _check_losses(self) -> None:
        if not self.temperature > 0:
            raise InputError(f"temperature={self.temperature} must be above 0")
        for name in ("embedding_weight", "generative_weight", "router_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name}={getattr(self, name)} must be a number from 0")
        if not self.embedding_weight + self.generative_weight:
            raise InputError("embedding_weight and generative_weight must not both be 0")
        if not self.num_hard_negatives:
            if not self.in_batch_negatives or self.embedding_batch_size == 1:
                raise InputError(
                    f"in_batch_negatives={self.in_batch_negatives}, embedding_batch_size={self.embedding_batch_size} "
                    "and num_hard_negatives=0 leave no negatives at all"
                )
            if self.no_in_batch_negatives:
                raise InputError(
                    "no_in_batch_negatives with num_hard_negatives=0 leaves those sources no negatives at all"
                )
        if self.streaming and not isinstance(self.sampling, dict) and self.sampling != "proportional":
            raise InputError(f"sampling={self.sampling!r}: how large streams are is not known, give weights by name")
        if self.streaming and not self.in_batch_negatives:
            raise InputError("streaming with in_batch_negatives=False: name the sources in no_in_batch_negatives")
        for name, known in (("loss_scale", get_args(LossScale)), ("next_token_loss", get_args(Reduction))):
            if getattr(self, name) not in known:
                raise InputError(f"{name}={getattr(self, name)!r} is none of {', '.join(known)}")

    def _check_transformers_own(self) -> None:
        """Settings of transformers that would do nothing here, or something else than they say."""
        if self.gradient_accumulation_steps != 1:
            raise InputError(
                "gradient_accumulation_steps must stay 1: raise embedding_batch_size and generative_batch_size, the "
                "global batch is cut into rows of tokens_per_row whatever its size"
            )
        for name, instead in _WITHOUT_EFFECT.items():
            if getattr(self, name, None) not in (None, False, 0, 0.0, "no"):
                raise InputError(f"{name}={getattr(self, name)!r} has no effect here: {instead}")
        for name in ("save_strategy", "eval_strategy"):
            if getattr(getattr(self, name), "value", getattr(self, name)) == "epoch":
                raise InputError(f"{name}='epoch': both halves have epochs of their own here; use 'steps'")
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            raise InputError("load_best_model_at_end needs metric_for_best_model, such as 'ndcg_at_10'")

    @property
    def n_gpu(self) -> int:
        """One process drives at most one GPU: torch's DataParallel would split packed rows anywhere."""
        return min(1, int(super().n_gpu))
