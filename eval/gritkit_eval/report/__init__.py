"""Reports on outcomes of any kind: one page, Markdown, JSON, two runs compared, a section of a model card.

Nothing here knows how anything is measured; what it reads are :class:`gritkit_eval.outcome.Outcome` files.
"""
