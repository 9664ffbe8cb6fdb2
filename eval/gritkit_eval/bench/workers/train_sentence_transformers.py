"""sentence-transformers' CachedMultipleNegativesRankingLoss, on features as its collator makes them."""

from typing import Any

from protocol import serve  # type: ignore[import-not-found,unused-ignore]


def load(options: dict[str, Any]) -> Any:
    """Options: folder, batch (JSON file), dtype, device; mini_batch_size, mini_batch_num_tokens where not the default.

    The batch's examples are left alone: this library embeds.
    """
    import importlib
    import inspect

    import sentence_transformers
    import torch
    import train_batch as common  # type: ignore[import-not-found,unused-ignore]

    try:
        losses = importlib.import_module("sentence_transformers.sentence_transformer.losses")
    except ModuleNotFoundError:  # before 6
        losses = importlib.import_module("sentence_transformers.losses")

    sizes = {name: options[name] for name in ("mini_batch_size", "mini_batch_num_tokens") if name in options}
    for name in sizes:
        if name not in inspect.signature(losses.CachedMultipleNegativesRankingLoss).parameters:  # before 6.2
            raise ModuleNotFoundError(name=f"sentence-transformers with {name}")
    device = options["device"]
    kwargs = {"dtype": common.weights_in(options["dtype"])}
    model = sentence_transformers.SentenceTransformer(options["folder"], device=device, model_kwargs=kwargs)
    model.train()
    common.mixed_precision(model, options["dtype"], device)
    loss = losses.CachedMultipleNegativesRankingLoss(model, scale=1 / common.TEMPERATURE, **sizes)
    batch = common.read(options["batch"])
    prompt = {"prompt_length": batch["pool_from"]} if batch["pool_from"] else {}
    columns = [
        {"input_ids": common.padded(column, 0, device), "attention_mask": common.mask(column, device), **prompt}
        for column in (batch["queries"], batch["positives"], batch["negatives"])
        if column
    ]

    def step() -> float:
        model.zero_grad(set_to_none=True)
        # Its pooling takes prompts out of the mask in place.
        features = [{**column, "attention_mask": column["attention_mask"].clone()} for column in columns]
        value = loss(features, torch.empty(0))
        value.backward()
        return float(value.detach())

    return step, common.saver(device, common.named(model[0].auto_model))


if __name__ == "__main__":
    serve(load, "sentence-transformers", "torch", "transformers")
