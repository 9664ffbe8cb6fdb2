"""Embedding only: the unified recipe without its generative half.

    gritkit train embedding_only model=mistralai/Mistral-7B-v0.1 data=mixture/ output=out/embed

The settings of ``grit``, with attention ``bb``; the comparison that GRIT's table 1 makes (Muennighoff et al. 2024,
arXiv 2402.09906). Only the embedding files of ``data`` are read, so one folder serves all three recipes. What comes out
embeds as well as the unified model and generates no longer.
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
    embedding_batch_size: int = 2048,
    max_length: int = 2048,
    bf16: bool = True,
    recompute: bool = False,
    save_steps: int = 250,
    seed: int = 0,
    resume: bool = False,
) -> None:
    """Train ``model`` (a folder or hub id) on the embedding files of ``data`` and write it to ``output/model``."""
    grit = GritModel.from_pretrained(
        model, dtype="float32", prompt_format="grit", pooling="mean", embedding_attention="bb"
    )
    longest = min(max_length, grit.context_length)
    pairs = [source for source in load(data) if source.kind == "embedding"]
    config = TrainConfig(
        output_dir=output,
        max_steps=max_steps,
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=0.03,
        weight_decay=0.0,
        embedding_batch_size=embedding_batch_size,
        num_hard_negatives=1,
        temperature=0.02,
        query_max_length=min(256, longest),
        passage_max_length=longest,
        bf16=bf16,
        recompute=recompute,
        save_steps=save_steps,
        eval_strategy="no" if evaluation is None else "steps",
        eval_steps=save_steps,
        seed=seed,
    )
    train(grit, pairs, config, evaluation=evaluation, resume=resume)
