"""What one writes by hand with transformers alone: padded micro-batches in the given order, GradCache around them.

Texts: transformers' own bidirectional attention, mean pooling, InfoNCE. Examples: a causal pass, full logits,
cross-entropy. In float64 and with ``cached`` false it is the reference whose gradient the others are measured against.

Shapes: B sequences of a micro-batch, T tokens of the longest, H hidden size, V vocabulary, Q queries, P passages.
"""

from contextlib import AbstractContextManager
from typing import Any

from protocol import serve  # type: ignore[import-not-found,unused-ignore]


def load(options: dict[str, Any]) -> Any:
    """Options: folder, batch (JSON file), dtype, device, micro_batch (texts at once; a quarter as many examples, whose
    logits are large); cached: false keeps all texts' graphs instead of running them twice."""
    import torch
    import train_batch as common  # type: ignore[import-not-found,unused-ignore]
    from torch.nn.functional import cross_entropy, normalize
    from transformers import AutoModelForCausalLM

    device, dtype, size = options["device"], common.weights_in(options["dtype"]), options["micro_batch"]
    few = max(1, size // 4)
    model: Any = AutoModelForCausalLM.from_pretrained(options["folder"], dtype=dtype).to(device)
    model.train()
    batch = common.read(options["batch"])
    texts = [*batch["queries"], *batch["positives"], *batch["negatives"]]
    num_queries, pool_from, examples = len(batch["queries"]), batch["pool_from"], batch["examples"]
    text_parts = [
        (common.padded(part, 0, device), common.mask(part, device))
        for part in (texts[i : i + size] for i in range(0, len(texts), size))
    ]
    written = [one["ids"] for one in examples]
    targets = [[i if on else -100 for i, on in zip(one["ids"], one["targets"], strict=True)] for one in examples]
    example_parts = [
        (
            common.padded(written[i : i + few], 0, device),
            common.mask(written[i : i + few], device),
            common.padded(targets[i : i + few], -100, device),
        )
        for i in range(0, len(examples), few)
    ]
    num_targets = sum(sum(one["targets"]) for one in examples)

    def precision() -> AbstractContextManager[Any]:
        return torch.autocast(device, torch.bfloat16, enabled=options["dtype"] == "bfloat16")

    def embed(ids_BT: Any, mask_BT: Any) -> Any:
        with precision():
            out = model.get_decoder()(input_ids=ids_BT, attention_mask=mask_BT, is_causal=False, use_cache=False)
        pooled_BT1 = mask_BT.clone()[:, :, None]
        pooled_BT1[:, :pool_from] = 0
        sums_BH = (out.last_hidden_state.to(dtype) * pooled_BT1).sum(1)
        return normalize(sums_BH / pooled_BT1.sum(1), dim=-1)

    def contrastive(vectors: Any) -> Any:
        scores_QP = vectors[:num_queries] @ vectors[num_queries:].T / common.TEMPERATURE
        return cross_entropy(scores_QP, torch.arange(num_queries, device=device))

    def next_token(ids_BT: Any, mask_BT: Any, targets_BT: Any) -> Any:
        with precision():
            logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
        logits, targets = logits_BTV[:, :-1].flatten(0, 1).to(dtype), targets_BT[:, 1:].flatten()
        return cross_entropy(logits, targets, ignore_index=-100, reduction="sum") / num_targets

    def texts_cached() -> float:
        with torch.no_grad():
            vectors: Any = torch.cat([embed(*part) for part in text_parts]).requires_grad_()
        loss = contrastive(vectors)
        loss.backward()
        for part, gradient in zip(text_parts, vectors.grad.split(size), strict=True):
            (embed(*part) * gradient).sum().backward()
        return float(loss.detach())

    def texts_whole() -> float:
        loss = contrastive(torch.cat([embed(*part) for part in text_parts]))
        loss.backward()
        return float(loss.detach())

    def step() -> float:
        model.zero_grad(set_to_none=True)
        total = texts_cached() if options.get("cached", True) else texts_whole()
        for part in example_parts:
            loss = next_token(*part)
            loss.backward()
            total += float(loss.detach())
        return total

    return step, common.saver(device, common.named(model.get_decoder(), model.get_output_embeddings()))


if __name__ == "__main__":
    serve(load, "torch", "transformers")
