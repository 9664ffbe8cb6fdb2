"""Answers from documents that were embedded: contrastive and next-token loss of the same rows.

    gritkit train grit_rag model=out/grit/model data=questions.jsonl output=out/rag

Records are ``{"query", "pos", "neg", "answer"}``. The positive and the hard negatives of a question stand in one packed
row, shuffled, each read on its own both ways; their pooled vectors go into the contrastive loss, and the answer reads
all of them: it is trained on exactly what ``gritkit ask`` hands it from the cache, distractors included. Other files of
``data``, embedding or generative, train beside it as in ``grit``. Start from a unified model.

Fine-tuning on block attention is what makes several cached documents work (Block-Attention, Ma et al. 2024, arXiv
2409.15355; TurboRAG, Lu et al. 2024, arXiv 2410.07590); here the same step keeps the vectors.
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
    max_steps: int = 500,
    learning_rate: float = 1e-5,
    embedding_batch_size: int = 256,
    generative_batch_size: int = 64,
    num_documents: int = 4,
    max_length: int = 1024,
    bf16: bool = True,
    recompute: bool = False,
    save_steps: int = 100,
    seed: int = 0,
    resume: bool = False,
) -> None:
    """Train ``model`` (a folder or hub id) on ``data`` and write it to ``output/model``."""
    grit = GritModel.from_pretrained(model, dtype="float32", prompt_format="grit")
    longest = min(max_length, grit.context_length // (num_documents + 1))
    config = TrainConfig(
        output_dir=output,
        max_steps=max_steps,
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=0.03,
        weight_decay=0.0,
        embedding_batch_size=embedding_batch_size,
        num_hard_negatives=num_documents - 1,
        temperature=0.02,
        query_max_length=min(256, longest),
        passage_max_length=longest,
        generative_batch_size=generative_batch_size,
        generative_max_length=longest,
        bf16=bf16,
        recompute=recompute,
        save_steps=save_steps,
        eval_strategy="no" if evaluation is None else "steps",
        eval_steps=save_steps,
        seed=seed,
    )
    train(grit, data, config, evaluation=evaluation, resume=resume)
