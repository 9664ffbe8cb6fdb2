"""The HTTP server of gritkit: chat, embeddings, reranking and question answering over documents, from one model.

It stands above ``gritkit`` and imports from it, never the other way round, and it knows nothing about training or
evaluation.
"""
