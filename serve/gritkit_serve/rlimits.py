"""What this process may use of the system. It imports next to nothing: a process that bounds itself begins with it."""

from __future__ import annotations

import contextlib


def limit(name: str, most: int) -> None:
    """Set a limit by its name in :mod:`resource`, where the system has it; never above what the process was given."""
    with contextlib.suppress(ImportError, AttributeError, OSError, ValueError):
        import resource

        what = getattr(resource, name)
        _, hard = resource.getrlimit(what)
        resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
