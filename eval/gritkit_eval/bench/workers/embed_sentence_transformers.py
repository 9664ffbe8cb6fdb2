"""sentence-transformers as a user gets it: load the folder, encode the texts; optionally with a batch size."""

import json
from pathlib import Path
from typing import Any

from protocol import serve  # type: ignore[import-not-found,unused-ignore]


def load(options: dict[str, Any]) -> Any:
    """Options: folder, texts (JSON file), dtype, device, batch_size (absent: the library's default)."""
    import numpy as np
    import torch
    from sentence_transformers import SentenceTransformer

    dtype = getattr(torch, options["dtype"])
    model = SentenceTransformer(options["folder"], device=options["device"], model_kwargs={"dtype": dtype})
    texts = json.loads(Path(options["texts"]).read_text(encoding="utf-8"))
    size = {} if options.get("batch_size") is None else {"batch_size": options["batch_size"]}
    return (
        lambda: model.encode(texts, show_progress_bar=False, **size),
        lambda vectors, path: np.save(path, np.asarray(vectors, dtype=np.float32)),
    )


if __name__ == "__main__":
    serve(load, "sentence-transformers", "torch", "transformers")
