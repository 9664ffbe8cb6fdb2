"""gritkit's embedding taken apart: each run is one more round, and what is saved is all rounds, as JSON."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from protocol import serve  # type: ignore[import-not-found,unused-ignore]


def load(options: dict[str, Any]) -> Any:
    """Options: folder, texts (JSON file), dtype, device. The first run is a warm-up and does not count."""
    import torch

    from gritkit import GritModel
    from gritkit_eval.bench.embed_pieces import WatchedModel

    model = GritModel.from_pretrained(options["folder"], dtype=options["dtype"], device=options["device"])
    watched = WatchedModel(model, json.loads(Path(options["texts"]).read_text(encoding="utf-8")))
    rounds: list[dict[str, Any]] = []

    def save(_: Any, path: str) -> None:
        about = {
            "threads": torch.get_num_threads(), "num_texts": len(watched.texts), "num_tokens": watched.num_tokens,
            "row_tokens": watched.row_tokens, "linear_operations": watched.linear_operations,
            "attention_operations": watched.attention_operations,
            "outside_operations": watched.outside_operations(),
        }  # fmt: skip
        Path(path).write_text(json.dumps({**about, "rounds": rounds[1:]}), encoding="utf-8")

    return lambda: rounds.append(dataclasses.asdict(watched.round())), save


if __name__ == "__main__":
    serve(load, "gritkit", "torch", "transformers")
