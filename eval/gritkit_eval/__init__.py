"""Evaluation of gritkit models: retrieval and similarity, generation, answering from documents, speed and memory.

It measures through the public face of ``gritkit``, the same that users hold, compares with other libraries, and writes
reports. ``gritkit`` does not import it: the command line finds it as an entry point. It knows nothing about serving.
"""
