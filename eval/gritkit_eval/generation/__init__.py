"""``gritkit eval generation``: what a model knows, works out and writes; and how well it predicts text.

    files -> tasks (prompts, and what grades an answer) -> log-probabilities | texts -> scores -> an Outcome each

Tasks in files are read and measured here, by the definitions of lm-evaluation-harness; all other tasks of it run
through the harness itself on an adapter.
"""
