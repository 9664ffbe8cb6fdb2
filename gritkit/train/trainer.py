"""GritTrainer: transformers' Trainer around the unified step, with gritkit's batches, checkpoints and figures.

    data -> tokenise (once, bulk) -> Mixer -> pack_batch -> unified_step -> optimizer, schedule, saving: transformers'
    own

This module knows nothing about kernels, prompts or file formats.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from gritkit.batch import token_budget
from gritkit.checkpoint.load import load as load_checkpoint
from gritkit.data import Data, Lengths, Mixer, PackedBatch, TokenisedData, load, pack_batch, tokenise
from gritkit.errors import GritkitError, InputError
from gritkit.files import resolve, staged_folder, write_atomic
from gritkit.losses import InfoNCE, NextToken
from gritkit.model import GritModel
from gritkit.train.callbacks import LossCurves, Progress
from gritkit.train.config import TrainConfig
from gritkit.train.step import Objective, StepLosses, unified_step

SAMPLER = "sampler.json"
_DEFAULT_LENGTHS = {"query": 256, "passage": 2048, "generative": 2048}  # the paper's


class PackedBatches:
    """An endless iterable of packed batches. Not a DataLoader, so accelerate neither dispatches nor slices it."""

    def __init__(self, mixer: Mixer, budget: int) -> None:
        self.mixer = mixer
        self.budget = budget

    def __iter__(self) -> Iterator[PackedBatch]:
        for mixed in self.mixer:
            yield pack_batch(mixed, self.budget)


class GritTrainer(Trainer):
    """Trains a model on a training set; ``train()`` and ``save_model()`` are those of transformers.

    Raises:
        RecordError: naming every record that cannot be used. InputError: for data or settings that do not fit the
        model.
    """

    def __init__(
        self, model: GritModel, config: TrainConfig, data: Data, *, callbacks: Iterable[TrainerCallback] = ()
    ) -> None:
        if config.world_size > 1:
            raise InputError(
                f"this trains in one process, not {config.world_size}: start it without torchrun or accelerate launch"
            )
        if hasattr(model.lm, "peft_config"):
            raise InputError("an adapter is attached: merge it first with model.merge_adapter()")
        tokenised = tokenised_for(model, config, data)
        seed = config.seed if config.data_seed is None else config.data_seed
        self.mixer = Mixer(
            tokenised,
            embedding_batch_size=config.embedding_batch_size,
            generative_batch_size=config.generative_batch_size,
            num_hard_negatives=config.num_hard_negatives,
            seed=seed,
        )
        self.config = config
        self.run_folder = resolve(config.output_dir or "")
        self.objective: Objective = Objective(
            contrastive=InfoNCE(temperature=config.temperature, in_batch_negatives=config.in_batch_negatives),
            next_token=NextToken(),
            embedding_weight=config.embedding_weight,
            generative_weight=config.generative_weight,
        )
        if config.max_steps < 1:
            config.max_steps = math.ceil(config.num_train_epochs * self.mixer.steps_per_epoch)
        use_cache = getattr(model.config, "use_cache", None)
        super().__init__(model=model, args=config, callbacks=list(callbacks))
        if config.recompute:
            model.activation_checkpointing_enable()
        if use_cache is not None:  # Trainer switches it off, and it would be saved so
            model.config.use_cache = use_cache
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.add_callback(Progress())
        if config.plot:
            self.add_callback(LossCurves())
        self._stage: Path | None = None
        self._figures = _Figures()
        embeddings = model.lm.get_input_embeddings().weight.numel()  # type: ignore[operator]
        self._parameters = sum(p.numel() for p in model.parameters()) - int(embeddings)

    # -- batches -------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        """The endless stream of packed batches."""
        return PackedBatches(self.mixer, self.config.tokens_per_row or token_budget(self.args.device))

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: Any
    ) -> tuple[list[Any], Tensor | int | None]:
        """The next batches; what losses are divided by is counted in them already."""
        return [next(epoch_iterator) for _ in range(num_batches)], None

    # -- the step ------------------------------------------------------------------------------------------------

    def training_step(  # type: ignore[override]  # packed batches, not padded dictionaries
        self, model: nn.Module, inputs: PackedBatch, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Gradients of one global batch; the total loss, detached."""
        model.train()
        losses = unified_step(model, inputs, self.objective, self.accelerator.backward)
        if not math.isfinite(losses.total.item()):
            raise GritkitError(
                f"the loss is {losses.total.item()} at step {self.state.global_step + 1} "
                f"(contrastive {_value(losses.contrastive)}, next token {_value(losses.next_token)}): "
                "lower learning_rate, or look at the data; the last checkpoint is from before"
            )
        self._figures.add(losses, inputs)
        return losses.total

    def compute_loss(  # type: ignore[override]
        self,
        model: nn.Module,
        inputs: PackedBatch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The total loss of one batch, with its graph."""
        losses = unified_step(model, inputs, self.objective)
        return (losses.total, losses) if return_outputs else losses.total

    def floating_point_ops(self, inputs: PackedBatch) -> int:  # type: ignore[override]
        """Forward and backward: 6 a parameter and token, embeddings and attention itself left out."""
        return 6 * self._parameters * inputs.num_tokens

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds both losses and tokens/s (means since the last log) to what transformers logs."""
        if "loss" in logs:
            logs.update(self._figures.drain())
        self.state.epoch = self.state.global_step / self.mixer.steps_per_epoch
        super().log(logs, start_time)

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Train to ``max_steps``; ``resume_from_checkpoint`` is True for the newest one, or its folder.

        Raises:
            InputError: when there is no such checkpoint, it is of other data or settings, or it is finished; and when
                the folder already holds checkpoints that a new run would mix with.
        """
        newest = get_last_checkpoint(str(self.run_folder)) if self.run_folder.is_dir() else None
        if not resume_from_checkpoint:
            if newest is not None:
                raise InputError(f"{newest} is of an earlier run: resume it, or choose another output folder")
            self._figures = _Figures()
            return self._train(None, **kwargs)
        checkpoint = newest if resume_from_checkpoint is True else str(resume_from_checkpoint)
        if checkpoint is None or not (Path(checkpoint) / SAMPLER).is_file():
            raise InputError(f"no checkpoint to resume from in {checkpoint or self.run_folder}")
        state = json.loads((Path(checkpoint) / SAMPLER).read_text(encoding="utf-8"))
        if state["global_step"] >= self.args.max_steps:
            raise InputError(
                f"{checkpoint} has done {state['global_step']} of {self.args.max_steps} steps: raise max_steps to go on"
            )
        self.mixer.load_state_dict(state["mixer"])
        self._figures = _Figures()
        return self._train(checkpoint, **kwargs)

    def _train(self, checkpoint: str | None, **kwargs: Any) -> Any:
        try:
            return super().train(resume_from_checkpoint=checkpoint, **kwargs)
        finally:
            trained = self.accelerator.unwrap_model(self.model).eval()
            if self.config.recompute:
                trained.activation_checkpointing_disable()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Weights by gritkit's own loader, into the model that is there."""
        lm = self.accelerator.unwrap_model(model or self.model).lm
        saved = load_checkpoint(
            resume_from_checkpoint,
            dtype=lm.dtype,
            device="cpu",
            device_map=None,
            quantization=None,
            adapter=None,
            revision=None,
            trust_remote_code=False,
        ).lm
        lm.load_state_dict(saved.state_dict())

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """A model folder that everything loads; ``model`` in the run's folder unless another is named."""
        folder = resolve(output_dir or self.run_folder)
        if folder == self.run_folder:  # a saved model replaces its folder, and the run lives in this one
            folder = folder / "model"
        self.accelerator.unwrap_model(self.model).save_pretrained(folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As transformers does, but in a folder aside that is renamed when it is complete: whole or absent."""
        name = f"checkpoint-{self.state.global_step}"
        with staged_folder(self.run_folder / name) as stage:
            self._stage = stage
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._stage = None
            for file in (stage / name).iterdir():
                os.replace(file, stage / file.name)
            (stage / name).rmdir()
            state = {"global_step": self.state.global_step, "mixer": self.mixer.state_dict()}
            write_atomic(stage / SAMPLER, json.dumps(state).encode())
        rotate_checkpoints(output_dir=str(self.run_folder), save_total_limit=self.args.save_total_limit)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._stage or super()._get_output_dir(trial))


class _Figures:
    """Sums since the last log; kept on the device, read when they are logged."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._tokens = 0
        self._since = time.perf_counter()

    def add(self, losses: StepLosses, batch: PackedBatch) -> None:
        for name, value in (("loss_contrastive", losses.contrastive), ("loss_next_token", losses.next_token)):
            if value is not None:
                self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._steps += 1
        self._tokens += batch.num_tokens

    def drain(self) -> dict[str, float]:
        figures = {name: value.item() / max(1, self._steps) for name, value in self._sums.items()}
        figures["tokens_per_second"] = self._tokens / max(1e-9, time.perf_counter() - self._since)
        self.__init__()  # type: ignore[misc]
        return figures


def train(
    model: GritModel,
    data: Data,
    config: TrainConfig,
    *,
    resume: bool | str = False,
    save: bool = True,
    callbacks: Iterable[TrainerCallback] = (),
) -> GritTrainer:
    """Train ``model`` in place on ``data`` (a path, a hub id, or records) and save it to ``output_dir/model``.

    Returns the trainer, whose ``state.log_history`` holds the figures of every step. ``resume``: True for the newest
    checkpoint of ``output_dir``, or the folder of one.

    Raises:
        RecordError: naming every record that cannot be used, before anything trains.
        InputError: for settings or data that do not fit. GritkitError: when a loss is not finite.
    """
    trainer = GritTrainer(model, config, data, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    if save:
        trainer.save_model()
    return trainer


def tokenised_for(model: GritModel, config: TrainConfig, data: Data) -> TokenisedData:
    """The training set in the model's tokens, cut to the run's lengths."""
    sources = load(data)
    kinds = {source.kind for source in sources}
    if "generative" in kinds and not model.writes:
        raise InputError("this checkpoint has no language-model head: it cannot be trained on generative records")
    lengths = {}
    for kind, default in _DEFAULT_LENGTHS.items():
        given = getattr(config, f"{kind}_max_length")
        if given is not None and given > model.context_length:
            raise InputError(
                f"{kind}_max_length={given} is beyond the model's context of {model.context_length} tokens"
            )
        lengths[kind] = min(given or default, model.context_length)
    total = sum(len(source.records) for source in sources)
    with tqdm(total=total, desc="tokenising", unit=" records", disable=bool(config.disable_tqdm)) as bar:
        return tokenise(sources, model.tokens, Lengths(**lengths), bar.update)


def _value(loss: Tensor | None) -> str:
    return "absent" if loss is None else f"{loss.item():.4g}"
