"""gritkit as a user gets it: answers of one token from a knowledge base, in every way and from every tier.

The time of an answer is the one that it states itself: from the question's documents having been found to its first
token. It goes into what is saved, beside the logits of the first token where they were asked for.
"""

import functools
import json
from pathlib import Path
from typing import Any

from protocol import serve  # type: ignore[import-not-found,unused-ignore]

TIERS = {"disk": (0, 0), "memory": (1 << 30, 0), "device": (1 << 30, 2 << 30)}
"""Tier that answers -> bytes of memory and of the device; a prefix is in memory."""


@functools.cache
def model_of(folder: str) -> Any:
    from gritkit import GritModel

    return GritModel.from_pretrained(folder, device="cpu", dtype="float32")


@functools.cache
def rag_of(folder: str, base: str, codec: str, tier: str, chunk_tokens: int) -> Any:
    from gritkit.rag import Budget, Rag

    memory, device = TIERS[tier]
    budget = Budget(memory=memory, device=device)
    return Rag.open(base, model_of(folder), codec=codec, chunk_tokens=chunk_tokens, budget=budget)


def load(options: dict[str, Any]) -> Any:
    """Options: none to begin with; then folder, base, codec, tier, chunk_tokens, and either ``add`` (case -> texts) or
    question, case, num_documents and reuse, with ``logits`` to have them saved instead of a time."""
    import numpy as np

    import gritkit  # noqa: F401  # its absence is told at the first, empty request

    if not options:
        return lambda: None, lambda made, path: None
    rag = rag_of(*(options[name] for name in ("folder", "base", "codec", "tier", "chunk_tokens")))
    if "add" in options:
        return lambda: add(rag, options["add"]), lambda report, path: Path(path).write_text(str(report))
    if options.get("logits"):
        return lambda: first_logits(rag, options), lambda made, path: np.savez(path, **made)
    return lambda: answer(rag, options), lambda made, path: Path(path).write_text(json.dumps(made))


def add(rag: Any, documents: dict[str, list[str]]) -> Any:
    from gritkit.rag import Document

    report = rag.add([Document(text, metadata={"case": case}) for case, texts in documents.items() for text in texts])
    assert report.chunks == sum(map(len, documents.values())), "a document was cut"
    return report


def answer(rag: Any, options: dict[str, Any]) -> dict[str, Any]:
    got = rag.ask(
        options["question"], where={"case": options["case"]}, top_k=options["num_documents"], reuse=options["reuse"],
        max_new_tokens=1,
    )  # fmt: skip
    assert len(got.sources) == options["num_documents"], len(got.sources)
    return {
        "seconds": got.timings.first_token - got.timings.search,
        "load": got.timings.load,
        "prompt_tokens": got.usage.prompt_tokens,
        "cached_tokens": got.usage.cached_tokens,
        "reuse": got.reuse,
        "counts": dict(rag.counts),
    }


def first_logits(rag: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The logits of the first token, and all tokens that they depend on."""
    import numpy as np

    from gritkit.generation.params import SamplingParams
    from gritkit.generation.sampling import Sampler

    class Keeping(Sampler):
        kept: Any = None

        def pick(self, logits_V: Any) -> int:
            self.kept = logits_V.clone()
            return super().pick(logits_V)

    params = SamplingParams(max_new_tokens=1)
    found = rag.find(
        options["question"], where={"case": options["case"]}, top_k=options["num_documents"], params=params
    )
    request = rag.prepare(found, options["reuse"], "no-bos").request
    decoder = rag.model.decoder(
        num_slots=1, max_length=request.num_laid + len(request.prompt_ids) + 1, prefill_chunk=len(request.prompt_ids)
    )
    sampler = Keeping(params, ())
    decoder.join(request, sampler)
    list(decoder.run())
    assert sampler.kept is not None
    ids = [np.array(one.ids) for one in request.documents]
    return {
        "logits": sampler.kept.numpy(),
        "prompt": np.array(request.prompt_ids),
        "num_left_out": np.array([one.num_bos for one in request.documents]),
        **{f"document{number}": one for number, one in enumerate(ids)},
    }


if __name__ == "__main__":
    serve(load, "gritkit", "torch", "transformers", "lancedb")
