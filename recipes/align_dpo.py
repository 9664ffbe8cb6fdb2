"""Preference alignment by DPO, beside which the model goes on learning to embed.

    gritkit train align_dpo model=out/grit/model data=preferences.jsonl output=out/dpo embedding_data=pairs.jsonl

Records are ``{"prompt", "chosen", "rejected"}``, the prompt a text or a list of messages. The defaults are those of
Rafailov et al. 2023 (arXiv 2305.18290, appendix B): beta 0.1, 64 pairs a step, RMSprop at 1e-6 after 150 steps of
warm-up, one pass over the data. Alignment changes all weights, so vectors drift; with ``embedding_data`` every step
adds the contrastive loss of a batch of embedding records, and ``evaluation_data`` (embedding records too, held out)
says what became of retrieval: nDCG@10 and recall@10 before and after are logged and stand in
``output/alignment.json``. ``lora_rank`` above 0 trains an adapter, merged at the end. The model is written to
``output/model``. Needs the extra ``align``.

A recipe picks; what it picks from is in gritkit.train.
"""

from __future__ import annotations

from gritkit import GritModel
from gritkit.train.adapters import add_lora
from gritkit.train.alignment import Keep, align


def main(
    *,
    model: str,
    data: str,
    output: str,
    embedding_data: str | None = None,
    evaluation_data: str | None = None,
    embedding_weight: float = 1.0,
    embedding_batch_size: int = 256,
    beta: float = 0.1,
    learning_rate: float = 1e-6,
    warmup_steps: int = 150,
    max_steps: int | None = None,
    batch_size: int = 8,
    batches_per_step: int = 8,
    max_length: int = 2048,
    lora_rank: int = 0,
    bf16: bool = True,
    recompute: bool = False,
    seed: int = 0,
) -> None:
    """Align ``model`` (a folder or hub id) with the pairs of ``data`` and write it to ``output/model``."""
    grit = GritModel.from_pretrained(model, dtype="float32")
    if lora_rank:
        add_lora(grit, r=lora_rank, alpha=2 * lora_rank, dropout=0.0, seed=seed)
    keep = None
    if embedding_data is not None:
        keep = Keep(embedding_data, weight=embedding_weight, batch_size=embedding_batch_size)
    align(
        grit,
        "dpo",
        data,
        output=output,
        keep=keep,
        evaluation=evaluation_data,
        max_length=max_length,
        recompute=recompute,
        beta=beta,
        learning_rate=learning_rate,
        optim="rmsprop",
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=warmup_steps,
        num_train_epochs=1,
        max_steps=max_steps or -1,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=batches_per_step,
        bf16=bf16,
        seed=seed,
    )
