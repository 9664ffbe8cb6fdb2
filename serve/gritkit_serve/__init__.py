"""The HTTP server of gritkit: chat, embeddings, reranking and question answering over documents, from one model.

The server is not part of this release yet; this package holds its name. It will stand above ``gritkit`` and import
from it, never the other way round, and it knows nothing about training or evaluation.
"""
