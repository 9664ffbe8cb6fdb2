"""Generation only: the unified recipe without its contrastive half.

    gritkit train generation_only model=mistralai/Mistral-7B-v0.1 data=mixture/ output=out/generate

The settings of ``grit``, with attention ``cc``; the comparison that GRIT's table 1 makes (Muennighoff et al. 2024,
arXiv 2402.09906). Only the generative files of ``data`` are read, so one folder serves all three recipes.
"""

from __future__ import annotations

from gritkit import GritModel
from gritkit.data import load
from gritkit.train import TrainConfig, train


def main(
    *,
    model: str,
    data: str,
    output: str,
    evaluation: str | None = None,
    max_steps: int = 1253,
    learning_rate: float = 2e-5,
    generative_batch_size: int = 256,
    max_length: int = 2048,
    bf16: bool = True,
    recompute: bool = False,
    save_steps: int = 250,
    seed: int = 0,
    resume: bool = False,
) -> None:
    """Train ``model`` (a folder or hub id) on the generative files of ``data`` and write it to ``output/model``."""
    grit = GritModel.from_pretrained(model, dtype="float32", prompt_format="grit", embedding_attention="cc")
    longest = min(max_length, grit.context_length)
    chats = [source for source in load(data) if source.kind == "generative"]
    config = TrainConfig(
        output_dir=output,
        max_steps=max_steps,
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=0.03,
        weight_decay=0.0,
        generative_batch_size=generative_batch_size,
        generative_max_length=longest,
        next_token_loss="mixed",
        next_token_group=32,
        bf16=bf16,
        recompute=recompute,
        save_steps=save_steps,
        eval_strategy="no" if evaluation is None else "steps",
        eval_steps=save_steps,
        seed=seed,
    )
    train(grit, chats, config, evaluation=evaluation, resume=resume)
