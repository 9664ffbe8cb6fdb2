"""Training: both jobs of the model in one step.

    train(model, data, TrainConfig(output_dir=..., max_steps=...))

    step         unified_step: one global batch -> both losses and their exact gradients
    world        the processes that train together
    trainer      GritTrainer: transformers' Trainer around the step
    evaluation   what the model is worth on held-out files
    adapters, alignment    LoRA and QLoRA; DPO and KTO beside the contrastive loss

This package knows nothing about kernels, prompts or file formats.
"""

from gritkit.train.config import TrainConfig
from gritkit.train.step import Objective, StepLosses, unified_step
from gritkit.train.trainer import GritTrainer, train

__all__ = ["GritTrainer", "Objective", "StepLosses", "TrainConfig", "train", "unified_step"]
