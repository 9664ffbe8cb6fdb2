"""sentence-transformers behind a minimal application, as one writes it to serve embeddings.

    python serve_sentence_transformers.py FOLDER DTYPE DEVICE

Two routes, of which the faster one counts: requests beside each other in FastAPI's threads, or one at a time. Vectors
go out as gritkit's do when its clients ask for base64, so that nobody is slowed down by writing decimal numbers.
"""

import base64
import sys
import threading
from typing import Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer


class Texts(BaseModel):
    """What is to be embedded; other fields of the OpenAI API are passed over."""

    input: list[str]


def app_of(model: Any) -> FastAPI:
    """The application around a model."""
    app = FastAPI()
    lock = threading.Lock()

    @app.post("/v1/embeddings")
    def embeddings(texts: Texts) -> JSONResponse:
        return reply(model.encode(texts.input, show_progress_bar=False))

    @app.post("/one-at-a-time/v1/embeddings")
    def embeddings_one_at_a_time(texts: Texts) -> JSONResponse:
        with lock:
            vectors = model.encode(texts.input, show_progress_bar=False)
        return reply(vectors)

    return app


def reply(vectors: Any) -> JSONResponse:
    coded = [base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode() for vector in vectors]
    return JSONResponse({"data": [{"index": index, "embedding": one} for index, one in enumerate(coded)]})


if __name__ == "__main__":
    folder, dtype, device = sys.argv[1:]
    loaded = SentenceTransformer(folder, device=device, model_kwargs={"dtype": getattr(torch, dtype)})
    uvicorn.run(app_of(loaded), host="127.0.0.1", port=0, access_log=False)
