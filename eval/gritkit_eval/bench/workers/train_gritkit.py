"""gritkit: one unified step over packed rows, with packing in the time."""

from typing import Any

from protocol import serve  # type: ignore[import-not-found,unused-ignore]


def load(options: dict[str, Any]) -> Any:
    """Options: folder, batch (JSON file), dtype, device."""
    import numpy as np
    import torch
    import train_batch as common  # type: ignore[import-not-found,unused-ignore]

    from gritkit import GritModel
    from gritkit.batch import token_budget
    from gritkit.data import ContrastiveBatch, MixedBatch, pack_batch, share_of
    from gritkit.losses import InfoNCE, NextToken
    from gritkit.tokens import sequence
    from gritkit.train import Objective, unified_step

    device = options["device"]
    model = GritModel.from_pretrained(options["folder"], dtype=common.weights_in(options["dtype"]), device=device)
    model.train()
    common.mixed_precision(model, options["dtype"], device)
    batch = common.read(options["batch"])
    passages = [*batch["positives"], *batch["negatives"]]
    count = len(batch["queries"])
    queries, texts = (
        [sequence(ids, pool=np.arange(len(ids)) >= batch["pool_from"]) for ids in half]
        for half in (batch["queries"], passages)
    )
    contrastive = ContrastiveBatch(
        source="", queries=queries, passages=texts, owners=[i % count for i in range(len(texts))],
        query_words=list(range(count)), passage_words=list(range(len(texts))), alone=[False] * count,
        answers=[None] * count,
    )  # fmt: skip
    mixed = MixedBatch(contrastive, [sequence(one["ids"], loss=one["targets"]) for one in batch["examples"]])
    objective = Objective(contrastive=InfoNCE(temperature=common.TEMPERATURE), next_token=NextToken())
    budget = token_budget(torch.device(device))

    def step() -> float:
        model.zero_grad(set_to_none=True)
        packed = pack_batch(share_of(mixed, objective.next_token.shares), budget)
        losses = unified_step(model, packed, objective, torch.Tensor.backward)
        return float(losses.total)

    lm: Any = model.lm
    return step, common.saver(device, common.named(lm.get_decoder(), lm.get_output_embeddings()))


if __name__ == "__main__":
    serve(load, "gritkit", "torch", "transformers")
