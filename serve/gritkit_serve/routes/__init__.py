"""The routes, one module per subject: parse, hand to the engine, shape the reply.

They know nothing about threads, slots or weights.
"""
