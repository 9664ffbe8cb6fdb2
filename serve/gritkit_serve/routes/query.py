"""What stands behind the ``?`` of a path: nothing that a route does not take.

This module knows nothing about which routes there are.
"""

from __future__ import annotations

from fastapi import Request

from gritkit_serve.errors import ParameterError


async def check_query(request: Request) -> None:
    """A dependency of routes. Raises ParameterError for a query parameter that the request's route does not take."""
    known = [parameter.alias for parameter in request.scope["route"].dependant.query_params]
    for name in request.query_params:
        if name not in known:
            taken = ", ".join(map(repr, known)) or "none"
            raise ParameterError(f"unknown query parameter {name[:60]!r}: this route takes {taken}", param=name[:60])
