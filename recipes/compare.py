"""Unified against each half alone, at equal budget: does learning both jobs cost either of them?

    gritkit train compare model=out/start data=mixture/ evaluation=held_out/ output=out/compare

GRIT's table 1 finds no loss from unifying at 7B (Muennighoff et al. 2024, arXiv 2402.09906); this makes the same table
for a model, a mixture and a budget of your own. From one start, with every seed, three runs are made: unified,
embedding only, generation only. A half sees the same batches in the unified run as alone, so each run has the steps,
the pairs and the conversations that its losses need and nothing else differs. What is measured is ``evaluation``
(gritkit.train.evaluation): a folder of held-out embedding and generative files. The table is printed and written to
``output/table.md``.
"""

from __future__ import annotations

import logging
from pathlib import Path
from statistics import mean, stdev

from gritkit import GritModel
from gritkit.data import load
from gritkit.files import write_atomic
from gritkit.train import GritTrainer, TrainConfig

RUNS = {"unified": ("embedding", "generative"), "embedding only": ("embedding",), "generation only": ("generative",)}
SHOWN = {"ndcg_at_10": "nDCG@10", "recall_at_10": "recall@10", "next_token_loss": "next-token loss, nats"}


def main(
    *,
    model: str,
    data: str,
    evaluation: str,
    output: str,
    seeds: int = 3,
    max_steps: int = 300,
    learning_rate: float = 1e-3,
    embedding_batch_size: int = 128,
    generative_batch_size: int = 32,
    max_length: int = 256,
    temperature: float = 0.05,
    bf16: bool = True,
) -> None:
    """Train ``model`` three ways with each seed and table what each way measures on ``evaluation``."""
    sources = load(data)
    figures: dict[str, list[dict[str, float]]] = {"before": []}
    for seed in range(seeds):
        for name, kinds in RUNS.items():
            grit = GritModel.from_pretrained(model, dtype="float32", prompt_format="grit", embedding_attention="bbcc")
            longest = min(max_length, grit.context_length)
            config = TrainConfig(
                output_dir=str(Path(output) / f"{name.replace(' ', '_')}_{seed}"),
                max_steps=max_steps,
                learning_rate=learning_rate,
                embedding_batch_size=embedding_batch_size,
                generative_batch_size=generative_batch_size,
                temperature=temperature,
                query_max_length=longest,
                passage_max_length=longest,
                generative_max_length=longest,
                bf16=bf16,
                grad_cache=False,
                save_strategy="no",
                logging_steps=10,
                seed=seed,
            )
            chosen = [source for source in sources if source.kind in kinds]
            trainer = GritTrainer(grit, config, chosen, evaluation=evaluation)
            if not figures["before"]:
                figures["before"].append(trainer.evaluate())
            trainer.train()
            figures.setdefault(name, []).append(trainer.evaluate())
            logging.getLogger("gritkit").info("%s, seed %d: %s", name, seed, figures[name][-1])
    table = _table(figures)
    write_atomic(Path(output) / "table.md", table.encode())
    print(table)


def _table(figures: dict[str, list[dict[str, float]]]) -> str:
    """Mean and standard deviation over the seeds of every run."""
    lines = ["| run | " + " | ".join(SHOWN.values()) + " |", "| --- |" + " ---: |" * len(SHOWN)]
    for name, measured in figures.items():
        cells = []
        for metric in SHOWN:
            values = [one[f"eval_{metric}"] for one in measured]
            spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.3f}{spread}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
