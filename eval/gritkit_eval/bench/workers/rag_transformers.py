"""transformers alone: the whole prompt in one pass, or only the question after key-values that were kept in memory; the
GRIT paper's scheme; the pass that cached answers must equal.

The tokens come from what gritkit saved (``rag_gritkit.first_logits``): the same documents, the same question.
"""

import functools
from pathlib import Path
from typing import Any

from protocol import serve  # type: ignore[import-not-found,unused-ignore]


@functools.cache
def model_of(folder: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()


def load(options: dict[str, Any]) -> Any:
    """Options: none to begin with; then folder, tokens (file) and way: full, memory, reference, or paper with a file
    for its key-values."""
    import numpy as np
    import torch
    import transformers  # noqa: F401  # its absence is told at the first, empty request

    if not options:
        return lambda: None, lambda made, path: None
    saved = np.load(options["tokens"])
    names = sorted((name for name in saved if name.startswith("document")), key=lambda name: int(name[8:]))
    documents = [torch.from_numpy(saved[name]) for name in names]
    prompt, left_out = torch.from_numpy(saved["prompt"]), saved["num_left_out"].tolist()
    model = model_of(options["folder"])

    def save(logits: Any, path: str) -> None:
        np.save(path, logits[0, -1].numpy())

    if options["way"] in ("full", "memory"):
        later = [one[skip:] for one, skip in zip(documents[1:], left_out[1:], strict=True)]
        read = torch.cat([documents[0], *later])
        if options["way"] == "memory":
            cache = read_cache(options["folder"], tuple(read.tolist()))
            return lambda: continued(model, cache, len(read), prompt), save
        ids = torch.cat([read, prompt])[None]

        def run() -> Any:
            with torch.inference_mode():
                return model(ids, logits_to_keep=1, use_cache=False).logits

        return run, save
    if options["way"] == "reference":
        return lambda: reference(model, documents, left_out, prompt), save
    assert options["way"] == "paper"
    assert len(documents) == 1, "the paper has one"
    if not Path(options["file"]).exists():
        keep(model, documents[0], options["file"])
    return lambda: paper(model, options["file"], prompt), save


@functools.lru_cache(maxsize=1)
def read_cache(folder: str, ids: tuple[int, ...]) -> Any:
    """What transformers keeps of tokens that it read causally, as one prompt."""
    import torch
    from transformers import DynamicCache

    cache: Any = DynamicCache()
    with torch.inference_mode():
        model_of(folder)(torch.tensor([ids]), past_key_values=cache, logits_to_keep=1, use_cache=True)
    return cache


def continued(model: Any, cache: Any, num_read: int, prompt: Any) -> Any:
    """One pass over the question alone. What the last one left in the cache is cropped first."""
    import torch

    if cache.get_seq_length() > num_read:
        cache.crop(num_read - cache.get_seq_length())
    with torch.inference_mode():
        return model(prompt[None], past_key_values=cache, logits_to_keep=1, use_cache=True).logits


def reference(model: Any, documents: list[Any], left_out: list[int], prompt: Any) -> Any:
    """One pass over every token ever seen, under the mask that says who saw whom: documents both ways, each alone; the
    question causally over all but the beginnings that later documents leave out."""
    import torch

    blocks, positions, joined, end = [], [], [], 0
    for number, (one, skip) in enumerate(zip(documents, left_out, strict=True)):
        skip = skip if number else 0
        positions.append(torch.arange(end - skip, end - skip + len(one)))
        blocks.append(torch.full((len(one),), number))
        joined.append(torch.arange(len(one)) >= skip)
        end += len(one) - skip
    positions.append(torch.arange(end, end + len(prompt)))
    blocks.append(torch.full((len(prompt),), -1))
    joined.append(torch.ones(len(prompt), dtype=torch.bool))
    block, position, seen = torch.cat(blocks), torch.cat(positions), torch.cat(joined)
    same = block[:, None] == block[None]
    causal = seen[None] & (position[:, None] >= position[None])
    mask = torch.where((block == -1)[:, None], causal, same)
    with torch.inference_mode():
        ids = torch.cat([*documents, prompt])[None]
        return model(
            ids, attention_mask=mask[None, None], position_ids=position[None], logits_to_keep=1, use_cache=False
        ).logits


def keep(model: Any, document: Any, file: str) -> None:
    """The document's key-values as the paper's code keeps them: as computed, at the positions where it was read."""
    import torch
    from safetensors.torch import save_file
    from transformers import DynamicCache

    cache: Any = DynamicCache()
    size = len(document)
    with torch.inference_mode():
        everything = torch.ones(1, 1, size, size, dtype=torch.bool)
        model(document[None], attention_mask=everything, past_key_values=cache, logits_to_keep=1, use_cache=True)
    tensors = {}
    for number, layer in enumerate(cache.layers):
        tensors[f"{number}.keys"], tensors[f"{number}.values"] = layer.keys.contiguous(), layer.values.contiguous()
    save_file(tensors, file)


def paper(model: Any, file: str, prompt: Any) -> Any:
    """Load them whole and continue, under a mask of the whole length."""
    import torch
    from safetensors.torch import load_file
    from transformers import DynamicCache

    tensors = load_file(file)
    cache = DynamicCache()
    for number in range(len(tensors) // 2):
        cache.update(tensors[f"{number}.keys"], tensors[f"{number}.values"], number)
    mask = torch.ones(1, cache.get_seq_length() + len(prompt), dtype=torch.long)
    with torch.inference_mode():
        return model(prompt[None], attention_mask=mask, past_key_values=cache, logits_to_keep=1, use_cache=True).logits


if __name__ == "__main__":
    serve(load, "torch", "transformers", "safetensors")
