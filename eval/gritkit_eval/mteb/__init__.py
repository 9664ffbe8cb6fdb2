"""Embedding tasks under MTEB's own protocols and metrics, from the hub or from data in files, for a GritModel and for
what it is compared with.

Nothing in here re-implements a metric: mteb measures, this package hands it models and data.
"""
