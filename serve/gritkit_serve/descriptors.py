"""How many files and connections the process may have open: a limit of the system, raised where that is allowed.

This module knows nothing about what they are opened for.
"""

from __future__ import annotations

import contextlib

from gritkit_serve.listening import BACKLOG

OTHERS = 124
"""Open for everything else: the model, knowledge bases, files that are taken in."""


def room_for(connections: int) -> int:
    """How many connections there is room for, at most so many, after the limit has been raised as far as they need.

    asyncio takes all that wait before any of them can be refused, so there should be room for these as well.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    infinity = resource.RLIM_INFINITY
    wanted = connections + BACKLOG + OTHERS
    if soft != infinity and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == infinity else min(wanted, hard), hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return connections if soft == infinity else room_within(soft, connections)


def room_within(limit: int, connections: int) -> int:
    """At most so many connections where so many files may be open."""
    return max(1, min(connections, limit - min(OTHERS, limit // 2)))
