"""gritkit without a server: what the answers must be, and how soon ``Rag.ask`` has its first word."""

import functools
import json
import time
from pathlib import Path
from typing import Any

from protocol import serve  # type: ignore[import-not-found,unused-ignore]


@functools.cache
def model_of(folder: str, dtype: str, device: str) -> Any:
    from gritkit import GritModel

    return GritModel.from_pretrained(folder, dtype=dtype, device=device)


@functools.cache
def rag_of(base: str, folder: str, dtype: str, device: str) -> Any:
    from gritkit.rag import Rag

    return Rag.open(base, model_of(folder, dtype, device))


def load(options: dict[str, Any]) -> Any:
    """Options: none to begin with; then folder, dtype, device, and ``kind``: answers (prompts, max_tokens), vectors
    (texts), ask (base, questions, options of ``Rag.stream``)."""
    import gritkit  # noqa: F401  # its absence is told at the first, empty request

    if not options:
        return lambda: None, lambda made, path: None
    place = (options["folder"], options["dtype"], options["device"])
    if options["kind"] == "ask":
        make = functools.partial(ask, rag_of(options["base"], *place), options["questions"], options["options"])
    elif options["kind"] == "answers":
        make = functools.partial(answers, model_of(*place), options["prompts"], options["max_tokens"])
    else:
        make = functools.partial(vectors, model_of(*place), options["texts"])
    return make, lambda made, path: Path(path).write_text(json.dumps(made))


def answers(model: Any, prompts: list[str], max_tokens: int) -> Any:
    """For each prompt the tokens of the likeliest answer, and how far ahead of the second likeliest each was (nats)."""
    from gritkit.generation.decoder import Request
    from gritkit.generation.params import SamplingParams

    params = SamplingParams(max_new_tokens=max_tokens)
    requests = [
        Request(model.tokens.chat_prompt([{"role": "user", "content": prompt}]), params, top_logprobs=2)
        for prompt in prompts
    ]
    return [
        [(one.token, one.top[0].logprob - one.top[1].logprob) for one in completion.logprobs]
        for completion in model.generate(requests)
    ]


def vectors(model: Any, texts: list[str]) -> Any:
    return model.embed(texts).tolist()


def ask(rag: Any, questions: list[str], options: dict[str, Any]) -> Any:
    from gritkit.generation.params import Delta
    from gritkit.rag import Answer

    made = []
    for question in questions:
        first = None
        sent = time.perf_counter()
        for event in rag.stream(question, **options):
            if first is None and isinstance(event, Delta):
                first = time.perf_counter() - sent
            if isinstance(event, Answer):
                sources = [[hit.id, hit.chunk] for hit in event.sources]
                made.append({"first": first, "text": event.text, "sources": sources, "reuse": event.reuse})
    return made


if __name__ == "__main__":
    serve(load, "gritkit", "torch", "transformers", "lancedb")
