"""A run that is killed again and again is the undisturbed run: the same losses, step by step, and the same weights."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from gritkit.data import EmbeddingRecord, GenerativeRecord
from gritkit.model import GritModel
from gritkit.train import TrainConfig, train
from tests.distributed import forked
from tests.models import grit_model

STEPS = 40
DATA: list[Any] = [
    *(EmbeddingRecord.of(f"question {i}", [f"answer {i}", f"other {i}"], [f"wrong {i}", "none"]) for i in range(30)),
    *(EmbeddingRecord.of(f"who {i}", [f"it was {i}"], [f"nobody {i}"], answer=f"number {i}") for i in range(9)),
    *(GenerativeRecord.of([f"say {i}", f"{i} it is"]) for i in range(13)),
]


class Told(TrainerCallback):
    """Writes every step's losses to a pipe, exactly."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss_contrastive" in logs:
            losses = logs["loss_contrastive"].hex(), logs["loss_next_token"].hex()
            os.write(self._pipe, f"{state.global_step} {' '.join(losses)}\n".encode())


def model() -> GritModel:
    made = grit_model("llama", prompt_format="grit")
    for module in made.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1  # so that the random state matters too
    return made


def run(folder: Path, pipe: int) -> None:
    config = TrainConfig(
        output_dir=str(folder),
        max_steps=STEPS,
        embedding_batch_size=8,
        generative_batch_size=4,
        tokens_per_row=96,
        learning_rate=1e-3,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=2,
        plot=False,
        dataloader_num_workers=1,
    )
    resume = any(folder.glob("checkpoint-*"))
    train(model(), DATA, config, resume=resume, callbacks=[Told(pipe)])


def started(folder: Path) -> tuple[int, int]:
    """A process that trains, and the end of its pipe to read."""
    reading, writing = os.pipe()
    child = forked()
    if child:
        os.close(writing)
        return child, reading
    code = 1
    try:
        os.close(reading)
        run(folder, writing)
        code = 0
    finally:
        os._exit(code)


def steps_until_killed(folder: Path, after: int | None) -> dict[int, str]:
    """The losses of a run that is killed when it has told of ``after`` steps; None: of a run to its end."""
    child, pipe = started(folder)
    told: dict[int, str] = {}
    with os.fdopen(pipe) as lines:
        for line in lines:
            step, losses = line.split(maxsplit=1)
            told[int(step)] = losses
            if len(told) == after:
                os.kill(child, signal.SIGKILL)
                break
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == (-signal.SIGKILL if after else 0)
    return told


@pytest.mark.slow
def test_ten_kills_change_nothing(tmp_path: Path) -> None:
    whole = steps_until_killed(tmp_path / "whole", None)
    assert sorted(whole) == list(range(1, STEPS + 1))
    choose = random.Random(0)
    seen: set[int] = set()
    for _ in range(10):
        told = steps_until_killed(tmp_path / "killed", choose.randint(3, 6))
        assert all(whole[step] == losses for step, losses in told.items())
        for checkpoint in (tmp_path / "killed").glob("checkpoint-*"):  # what is there is whole
            assert GritModel.from_pretrained(checkpoint, device="cpu").dim == 32
        seen |= set(told)
    told = steps_until_killed(tmp_path / "killed", None)
    assert all(whole[step] == losses for step, losses in told.items())
    assert seen | set(told) == set(whole)
    ends = [GritModel.from_pretrained(tmp_path / name / "model", device="cpu") for name in ("whole", "killed")]
    for a, b in zip(*(end.parameters() for end in ends), strict=True):
        assert torch.equal(a, b)
    left = sorted(file.name for file in (tmp_path / "killed").iterdir())
    assert left == ["checkpoint-38", "checkpoint-40", "model"]
