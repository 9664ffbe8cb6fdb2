from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gritkit.errors import InputError
from gritkit.train import TrainConfig


def test_defaults(tmp_path: Path) -> None:
    config = TrainConfig(output_dir=str(tmp_path))
    assert config.report_to == []
    assert (config.learning_rate, config.temperature, config.warmup_steps) == (2e-5, 0.02, 0.03)
    assert config.disable_tqdm  # tests have no terminal
    assert config.n_gpu <= 1


def test_what_transformers_knows_can_be_set(tmp_path: Path) -> None:
    config = TrainConfig(output_dir=str(tmp_path), adam_beta2=0.95, lr_scheduler_type="cosine", max_grad_norm=0.5)
    assert (config.adam_beta2, str(config.lr_scheduler_type.value), config.max_grad_norm) == (0.95, "cosine", 0.5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"output_dir": None}, "output_dir is missing"),
        ({"embedding_batch_size": 0}, "embedding_batch_size=0 must be at least 1"),
        ({"generative_batch_size": -1}, "generative_batch_size=-1"),
        ({"tokens_per_row": 0}, "tokens_per_row=0"),
        ({"num_hard_negatives": -1}, "num_hard_negatives=-1"),
        ({"query_max_length": 1}, "query_max_length=1 leaves no room"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"embedding_weight": -1.0}, "embedding_weight=-1.0 must be a number from 0"),
        ({"embedding_weight": 0.0, "generative_weight": 0.0}, "must not both be 0"),
        ({"in_batch_negatives": False, "num_hard_negatives": 0}, "no negatives at all"),
        ({"max_steps": 0}, "max_steps=0 must be at least 1"),
        ({"num_train_epochs": 0}, "num_train_epochs=0 must be above 0"),
        ({"seed": -1}, "seed=-1 must be from 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan must be a number from 0"),
        ({"embedding_batch_size": 1, "num_hard_negatives": 0}, "leave no negatives at all"),
        ({"gradient_checkpointing": True}, "has no effect here: set recompute=True"),
        ({"save_strategy": "epoch"}, "save_strategy='epoch': both halves have epochs of their own"),
        ({"load_best_model_at_end": True}, "needs metric_for_best_model"),
        ({"next_token_loss": "mean"}, "next_token_loss='mean' is none of token, sample, mixed"),
        ({"streaming": True, "sampling": 0.5}, "give weights by name"),
        ({"gradient_accumulation_steps": 2}, "raise embedding_batch_size"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainConfig(**{"output_dir": str(tmp_path), **given})
