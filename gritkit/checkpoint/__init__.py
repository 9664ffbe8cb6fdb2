"""Model folders: recognising, loading and saving them, safely.

``recognise`` what a folder says about embedding (gritkit, sentence-transformers, GritLM, plain); ``load`` weights and
tokenizer; ``save`` a folder that gritkit, plain transformers and sentence-transformers all read. Nothing here knows
about attention plans, pooling code or generation.
"""
