"""Questions about data and vectors that a task's score leaves open: contamination and diversity of training data, the
geometry of a vector space, what quality costs, what instructions do.

Each is a module of pure functions with formula and source, one that runs it over files and a model, and one that writes
the section.
"""
