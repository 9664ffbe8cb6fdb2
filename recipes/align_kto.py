"""Preference alignment by KTO, beside which the model goes on learning to embed.

    gritkit train align_kto model=out/grit/model data=judged.jsonl output=out/kto embedding_data=pairs.jsonl

Records are ``{"prompt", "completion", "label"}``, the label saying whether the completion is desired, or the pairs of
``align_dpo``, taken apart. KTO is what GRIT was aligned with (Muennighoff et al. 2024, arXiv 2402.09906: AlpacaEval
74.8 to 86.7, MTEB 66.8 to 66.7, without embedding records beside). Beta 0.1 and weights of 1 are those of Ethayarajh
et al. 2024 (arXiv 2402.01306), the learning rate is that of trl's examples; 32 answers a step and 150 steps of warm-up
are a usual choice, to be checked against a run of your own. One pass is made over the data. Where desired answers are
many more or fewer, set the weights so that weight times number is about equal, or up to a third larger for the desired
ones (eq. 8 there).

``embedding_data``, ``evaluation_data``, ``lora_rank`` and the output are those of ``align_dpo``. How far the model has
moved is estimated from the answers of a pass, so ``batch_size`` should not be small; a step takes ``batches_per_step``
such passes. Needs the extra ``align``.

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
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    learning_rate: float = 5e-7,
    warmup_steps: int = 150,
    max_steps: int | None = None,
    batch_size: int = 16,
    batches_per_step: int = 2,
    max_length: int = 2048,
    lora_rank: int = 0,
    bf16: bool = True,
    recompute: bool = False,
    seed: int = 0,
) -> None:
    """Align ``model`` (a folder or hub id) with the judged answers of ``data`` and write it to ``output/model``."""
    grit = GritModel.from_pretrained(model, dtype="float32")
    if lora_rank:
        add_lora(grit, r=lora_rank, alpha=2 * lora_rank, dropout=0.0, seed=seed)
    keep = None
    if embedding_data is not None:
        keep = Keep(embedding_data, weight=embedding_weight, batch_size=embedding_batch_size)
    align(
        grit,
        "kto",
        data,
        output=output,
        keep=keep,
        evaluation=evaluation_data,
        max_length=max_length,
        recompute=recompute,
        beta=beta,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
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
