"""gritkit as a user gets it: load the folder, embed the texts."""

import json
from pathlib import Path
from typing import Any

from protocol import serve  # type: ignore[import-not-found,unused-ignore]


def load(options: dict[str, Any]) -> Any:
    """Options: folder, texts (JSON file), dtype, device."""
    import numpy as np

    from gritkit import GritModel

    model = GritModel.from_pretrained(options["folder"], dtype=options["dtype"], device=options["device"])
    texts = json.loads(Path(options["texts"]).read_text(encoding="utf-8"))
    return lambda: model.embed(texts), lambda vectors, path: np.save(path, vectors)


if __name__ == "__main__":
    serve(load, "gritkit", "torch", "transformers")
