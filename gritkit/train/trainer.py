"""GritTrainer: transformers' Trainer around the unified step, with gritkit's batches, checkpoints and figures.

    data -> batches (gritkit.train.batches) -> unified_step -> optimizer, schedule, reporting: transformers' own

This module knows nothing about kernels, prompts or file formats.
"""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from gritkit.batch import token_budget
from gritkit.checkpoint.load import load as load_checkpoint
from gritkit.checkpoint.save import check_target
from gritkit.data import Data, PackedBatch
from gritkit.errors import GritkitError, InputError
from gritkit.files import resolve, write_atomic
from gritkit.losses import InfoNCE, NextToken
from gritkit.losses.next_token import Reduction
from gritkit.model import GritModel
from gritkit.train.adapters import has_adapter, load_adapter_weights, save_adapter
from gritkit.train.batches import PackedBatches, Packing, batches_of, held_out_of, steps_of
from gritkit.train.callbacks import LossCurves, Progress
from gritkit.train.checkpoints import load_whole_state, staged_by_all, whole_state
from gritkit.train.config import TrainConfig
from gritkit.train.evaluation import HeldOut, evaluate
from gritkit.train.failure import save_failed_batch
from gritkit.train.figures import Figures, GradientHalves, local, matmul_rate, step_flops
from gritkit.train.step import LossScale, Objective, StepLosses, unified_step
from gritkit.train.weights import check_trainable, freeze_untouched_head, size_of
from gritkit.train.world import World

SAMPLER = "sampler.json"
_OF_THE_OBJECTIVE = (
    "temperature", "embedding_weight", "generative_weight", "router_weight", "loss_scale", "next_token_loss",
    "next_token_group",
)  # fmt: skip


class GritTrainer(Trainer):
    """Trains a model on a training set; ``train()`` and ``save_model()`` are those of transformers.

    Raises:
        RecordError: naming every record that cannot be used. InputError: for data or settings that do not fit the
        model.
    """

    def __init__(
        self,
        model: GritModel,
        config: TrainConfig,
        data: Data,
        *,
        evaluation: Data | None = None,
        callbacks: Iterable[TrainerCallback] = (),
    ) -> None:
        config = copy.copy(config)  # what is decided here is not for the next trainer
        check_trainable(model)
        self.config = config
        self.world = World.here(config.device)
        self.run_folder = resolve(config.output_dir or "")
        self.objective: Objective = Objective(
            contrastive=InfoNCE(temperature=config.temperature),
            next_token=NextToken(reduction=cast(Reduction, config.next_token_loss), group=config.next_token_group),
            embedding_weight=config.embedding_weight,
            generative_weight=config.generative_weight,
            router=model.router_balance if config.router_weight else None,
            router_weight=config.router_weight,
            loss_scale=cast(LossScale, config.loss_scale),
        )
        self.mixer, self._generates = batches_of(model, config, data, self.world)
        if config.max_steps < 1:
            config.max_steps = steps_of(config, self.mixer)
        use_cache = getattr(model.config, "use_cache", None)
        held_out = None if evaluation is None else held_out_of(model, config, evaluation)
        super().__init__(model=model, args=config, eval_dataset=cast(Any, held_out), callbacks=list(callbacks))
        if use_cache is not None:  # Trainer switches it off, and it would be saved so
            model.config.use_cache = use_cache
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.add_callback(Progress())
        if config.plot:
            self.add_callback(LossCurves())
        self._stage: Path | None = None
        self._figures: Figures | None = None
        self._budget = budget = config.tokens_per_row or token_budget(config.device)
        place = (0, 1) if config.streaming else (self.world.rank, self.world.size)
        num_bos = len(model.tokens.bos_ids)
        packing = Packing(self.objective.next_token.shares, num_bos, model.context_length, place, budget)
        self._batches = PackedBatches(self.mixer, packing, config.dataloader_num_workers)

    # -- batches -------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        """The endless stream of this process's packed batches."""
        return self._batches

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: Any
    ) -> tuple[list[Any], Tensor | int | None]:
        """The next batches; what losses are divided by is counted in them already."""
        return [next(epoch_iterator) for _ in range(num_batches)], None

    # -- the step ------------------------------------------------------------------------------------------------

    def training_step(  # type: ignore[override]  # packed batches, not padded dictionaries
        self, model: nn.Module, inputs: PackedBatch, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Gradients of one global batch; its total loss, detached, the same in every process."""
        model.train()
        every = self.config.gradient_figures_steps
        halves = GradientHalves(model.parameters()) if every and self.state.global_step % every == 0 else None
        losses = unified_step(
            model,
            inputs,
            self.objective,
            self.accelerator.backward,
            world=self.world,
            grad_cache=self.config.grad_cache,
            halves=halves,
        )
        if not math.isfinite(losses.total.item()):
            self._fail(inputs, losses)
        assert self._figures is not None
        self._flops = step_flops(self._size, inputs, recompute=self.config.recompute, twice=losses.twice)
        self._figures.add(losses, inputs, self._flops)
        if halves is not None:
            self._figures.note(halves.figures)
        return losses.total

    def _fail(self, batch: PackedBatch, losses: StepLosses) -> None:
        step = self.state.global_step + 1
        told = {"contrastive": losses.contrastive, "next_token": losses.next_token, "router": losses.router}
        figures = {name: str(value.item()) for name, value in told.items() if value is not None}
        folder = self.run_folder / f"failed-step-{step}-process-{self.world.rank}"
        backend = self.accelerator.unwrap_model(self.model).tokens.backend
        decode = partial(backend.decode, skip_special_tokens=False)
        save_failed_batch(folder, batch, {"step": step, "losses": figures}, decode)
        raise GritkitError(
            f"the loss is {losses.total.item()} at step {step} "
            f"({', '.join(f'{name} {value}' for name, value in figures.items())}): its batch is in {folder}; "
            "lower learning_rate, or look at the data; the last checkpoint is from before"
        )

    def compute_loss(  # type: ignore[override]
        self,
        model: nn.Module,
        inputs: PackedBatch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The total loss of one batch, with its graph; in a single process."""
        losses = unified_step(model, inputs, self.objective)
        return (losses.total, losses) if return_outputs else losses.total

    def evaluate(  # type: ignore[override]
        self, eval_dataset: HeldOut | None = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """What the model is worth on the held-out sets (``gritkit.train.evaluation``), logged and returned.

        Raises:
            InputError: when the trainer was made without ``evaluation``.
        """
        held_out = eval_dataset if eval_dataset is not None else cast("HeldOut | None", self.eval_dataset)
        if held_out is None:
            raise InputError("there is nothing to evaluate on: give the trainer held-out data, evaluation=...")
        with self._paused():
            found = evaluate(cast(nn.Module, self.model_wrapped or self.model), held_out, self._budget)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def floating_point_ops(self, inputs: PackedBatch) -> int:  # type: ignore[override]
        """Forward and backward of the model in the step just made, without what is run twice."""
        return int(self._flops[0])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds both losses and tokens/s (means since the last log) to what transformers logs."""
        if "loss" in logs and self._figures is not None:
            logs.update(self._figures.drain())
        if self.mixer.steps_per_epoch:
            self.state.epoch = self.state.global_step / self.mixer.steps_per_epoch
        super().log(logs, start_time)

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Train to ``max_steps``; ``resume_from_checkpoint`` is True for the newest one, or its folder.

        Raises:
            InputError: when there is no such checkpoint, it is of other data or settings, or it is finished; and when
                the folder already holds checkpoints that a new run would mix with.
        """
        if self.world.rank == 0:
            for torn in self.run_folder.glob(".checkpoint-*.tmp"):  # a kill left it; nothing else writes here
                shutil.rmtree(torn, ignore_errors=True)
        if not has_adapter(self.accelerator.unwrap_model(self.model)):
            check_target(self.run_folder / "model")
        newest = get_last_checkpoint(str(self.run_folder)) if self.run_folder.is_dir() else None
        if not resume_from_checkpoint:
            if newest is not None:
                raise InputError(f"{newest} is of an earlier run: resume it, or choose another output folder")
            return self._train(None, **kwargs)
        checkpoint = newest if resume_from_checkpoint is True else str(resume_from_checkpoint)
        if checkpoint is None or not (Path(checkpoint) / SAMPLER).is_file():
            raise InputError(f"no checkpoint to resume from in {checkpoint or self.run_folder}")
        state = json.loads((Path(checkpoint) / SAMPLER).read_text(encoding="utf-8"))
        if state["global_step"] >= self.args.max_steps:
            raise InputError(
                f"{checkpoint} has done {state['global_step']} of {self.args.max_steps} steps: raise max_steps to go on"
            )
        if not (Path(checkpoint) / "scheduler.pt").is_file():
            raise InputError(
                f"{checkpoint} holds a model but no state of its training: start anew from it as the model"
            )
        for name, before in state["settings"].items():
            if before != (now := self._settings()[name]):
                raise InputError(f"cannot resume with another {name}: it was {before!r} and is {now!r}")
        mixers = state["mixers"]
        self.mixer.load_state_dict(mixers[min(self.world.rank, len(mixers) - 1)])
        return self._train(checkpoint, **kwargs)

    def _settings(self) -> dict[str, Any]:
        """What a run that is resumed must have in common with the one before."""
        root = self.accelerator.unwrap_model(self.model)
        return {
            **{name: str(getattr(self.config, name)) for name in _OF_THE_OBJECTIVE},
            "embedding config": root.embedding_config.to_json(),
        }

    def _train(self, checkpoint: str | None, **kwargs: Any) -> Any:
        model = self.accelerator.unwrap_model(self.model)
        dtype = torch.bfloat16 if self.args.bf16 else model.dtype
        frozen_head = None if self._generates else freeze_untouched_head(model)
        self._size = size_of(model)
        self._figures = Figures(self.world, matmul_rate(self.args.device, dtype))
        if self.config.recompute:
            model.activation_checkpointing_enable()
        try:
            return super().train(resume_from_checkpoint=checkpoint, **kwargs)
        finally:
            self._batches.close()
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False).eval()
            for left in ("forward", "_original_forward"):  # accelerate's autocast, which it leaves on the model
                vars(model).pop(left, None)
            if frozen_head is not None:
                frozen_head.requires_grad_(True)
            if self.config.recompute:
                model.activation_checkpointing_disable()
            model.forget_fingerprint()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Weights by gritkit's own loader, into the model that is there."""
        root = self.accelerator.unwrap_model(model or self.model)
        root.forget_fingerprint()
        if has_adapter(root):
            load_adapter_weights(root, resume_from_checkpoint)
            return
        lm = root.lm
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
        load_whole_state(lm, saved.state_dict())

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A model folder that everything loads, ``model`` in the run's folder unless another is named; of a model with
        an adapter the adapter alone, ``adapter``.

        Every process must call it; the first one writes."""
        model = self.accelerator.unwrap_model(self.model)
        adapted = has_adapter(model)
        folder = resolve(output_dir or self.run_folder)
        if folder == self.run_folder:  # a saved model replaces its folder, and the run lives in this one
            folder = folder / ("adapter" if adapted else "model")
        self._check_finite()
        state = whole_state(model.lm)
        if self.args.should_save and adapted:
            save_adapter(model, folder, state_dict=state)
        elif self.args.should_save:
            model.save_pretrained(folder, state_dict=state)
        self.world.wait()
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _check_finite(self) -> None:
        """Raises GritkitError where weights overflowed: what is saved is whole."""
        weights = [local(p) for p in cast(nn.Module, self.model).parameters() if p.requires_grad]
        broken = sum(not bool(torch.isfinite(weight).all()) for weight in weights)
        if self.world.summed([broken])[0]:
            raise GritkitError(
                f"the weights are not finite after step {self.state.global_step}, and were not saved: lower "
                "learning_rate"
            )

    def _paused(self) -> AbstractContextManager[None]:
        """Time that is not training's."""
        return nullcontext() if self._figures is None else self._figures.paused()

    def _load_best_model(self) -> None:
        """Weights of the checkpoint that ``metric_for_best_model`` likes best."""
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As transformers does, but in a folder aside that is renamed when it is complete: whole or absent."""
        final = self.run_folder / f"checkpoint-{self.state.global_step}"
        mixers = self.world.all_told(self._batches.state)
        with self._paused(), staged_by_all(final, self.world) as stage:
            self._stage = stage
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._stage = None
            self.world.wait()
            if self.args.should_save:
                self._complete(stage, final, mixers)
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(self.run_folder),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
            )

    def _complete(self, stage: Path, final: Path, mixers: list[Any]) -> None:
        """Move what transformers wrote one folder up, name the best checkpoint by its final path, add the sampler."""
        for file in (stage / final.name).iterdir():
            os.replace(file, stage / file.name)
        (stage / final.name).rmdir()
        best = self.state.best_model_checkpoint
        if best is not None and Path(best).is_relative_to(stage):
            self.state.best_model_checkpoint = str(final)
            self.state.save_to_json(str(stage / TRAINER_STATE_NAME))
        state = {"global_step": self.state.global_step, "settings": self._settings(), "mixers": mixers}
        write_atomic(stage / SAMPLER, json.dumps(state).encode())

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._stage or super()._get_output_dir(trial))


def train(
    model: GritModel,
    data: Data,
    config: TrainConfig,
    *,
    evaluation: Data | None = None,
    resume: bool | str = False,
    save: bool = True,
    callbacks: Iterable[TrainerCallback] = (),
) -> GritTrainer:
    """Train ``model`` in place on ``data`` (a path, a hub id, or records) and save it to ``output_dir/model``.

    Returns the trainer, whose ``state.log_history`` holds the figures of every step. ``evaluation``: held-out data in
    the same forms, or pairs of sentences, measured as ``eval_strategy`` says, at the end where it says no.
    ``resume``: True for the newest checkpoint of ``output_dir``, or the folder of one.

    Raises:
        RecordError: naming every record that cannot be used, before anything trains.
        InputError: for settings or data that do not fit. GritkitError: when a loss is not finite.
    """
    trainer = GritTrainer(model, config, data, evaluation=evaluation, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    if evaluation is not None and trainer.args.eval_strategy == "no":
        trainer.evaluate()
    if save:
        trainer.save_model()
    return trainer
