"""The unified recipe: one model learns to embed and to generate, in every step both.

    gritkit train grit model=mistralai/Mistral-7B-v0.1 data=mixture/ output=out/grit
    gritkit train grit model=out/start data=toy/ output=out/grit max_steps=20 embedding_batch_size=16

The defaults are those of GRIT's 7B model (Muennighoff et al. 2024, arXiv 2402.09906, section 3 and appendix): InfoNCE
at temperature 0.02 over 2048 queries and one hard negative each, beside the mixed next-token loss over 256
conversations; learning rate 2e-5, 3 % warm-up and linear decay, 1253 steps, bf16; queries of at most 256 tokens,
passages and conversations of at most 2048; attention ``bbcc``, that is bidirectional for embeddings and causal for
generation, with mean pooling. ``data`` is a folder with one file for each source (see gritkit.data), ``evaluation`` a
file or folder held out from it; the trained model is written to ``output/model``.

A recipe picks; what it picks from is in gritkit.train.
"""

from __future__ import annotations

from gritkit import GritModel
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
    generative_batch_size: int = 256,
    max_length: int = 2048,
    bf16: bool = True,
    recompute: bool = False,
    save_steps: int = 250,
    seed: int = 0,
    resume: bool = False,
) -> None:
    """Train ``model`` (a folder or hub id) on ``data`` and write it to ``output/model``."""
    grit = GritModel.from_pretrained(
        model, dtype="float32", prompt_format="grit", pooling="mean", embedding_attention="bbcc"
    )
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
