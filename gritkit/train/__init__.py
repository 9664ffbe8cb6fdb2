"""Training: both jobs of the model in one step.

    train(model, data, TrainConfig(output_dir=..., max_steps=...))

The step itself is ``gritkit.train.step.unified_step``; ``GritTrainer`` puts transformers' Trainer around it.

This package knows nothing about kernels, prompts or file formats.
"""

from gritkit.train.config import TrainConfig
from gritkit.train.step import Objective, StepLosses, unified_step
from gritkit.train.trainer import GritTrainer, train

__all__ = ["GritTrainer", "Objective", "StepLosses", "TrainConfig", "train", "unified_step"]
