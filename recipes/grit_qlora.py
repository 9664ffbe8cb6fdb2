"""The unified recipe on a base of 4 bits: a 7B model trains on one consumer GPU.

    gritkit train grit_qlora model=mistralai/Mistral-7B-v0.1 data=mixture/ output=out/qlora

QLoRA (Dettmers et al. 2023, arXiv 2305.14314): the base in nf4 by bitsandbytes (``pip install bitsandbytes``),
adapters as in ``grit_lora``, activations recomputed. The adapter is written to ``output/adapter``; merged into the
weights that quantising left, once both are found to agree, to ``output/model`` in bf16.
"""

from __future__ import annotations

from gritkit import GritModel
from gritkit.train import TrainConfig, train
from gritkit.train.adapters import add_lora, save_merged


def main(
    *,
    model: str,
    data: str,
    output: str,
    evaluation: str | None = None,
    max_steps: int = 1253,
    learning_rate: float = 1e-4,
    embedding_batch_size: int = 2048,
    generative_batch_size: int = 256,
    max_length: int = 2048,
    bf16: bool = True,
    recompute: bool = True,
    save_steps: int = 250,
    r: int = 16,
    alpha: float = 64.0,
    dropout: float = 0.1,
    seed: int = 0,
    resume: bool = False,
) -> None:
    """Train an adapter of ``model`` on ``data``; write it to ``output/adapter``, and merged to ``output/model``."""
    grit = GritModel.from_pretrained(
        model, dtype="bfloat16", quantization="int4", prompt_format="grit", pooling="mean", embedding_attention="bbcc"
    )
    add_lora(grit, r=r, alpha=alpha, dropout=dropout, seed=seed)
    longest = min(max_length, grit.context_length)
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
    train(grit, data, config, evaluation=evaluation, resume=resume)
    save_merged(grit, f"{output}/adapter", f"{output}/model", ["A short text.", "Another one, to compare by."])
