"""The engine: one thread that owns the device, and the work of many clients that it interleaves.

    generation   rows that decode together, joining and leaving at any step        (generating)
    embedding    texts of many clients in one packed row                           (embedding)
    passes       what library code in worker threads asks of the model             (passes, workers)

Who goes next is :mod:`~gritkit_serve.engine.fairness`'s to say. This package knows nothing about HTTP or knowledge
bases.
"""

from gritkit_serve.engine.engine import Engine, Load, State
from gritkit_serve.engine.errors import EngineFailed, NotServing, Overloaded
from gritkit_serve.engine.generation import Generation
from gritkit_serve.engine.limits import EngineLimits

__all__ = ["Engine", "EngineFailed", "EngineLimits", "Generation", "Load", "NotServing", "Overloaded", "State"]
