"""A figure of matplotlib that needs no display, and its file beside a results file.

This module knows nothing about what is drawn.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from gritkit.errors import MissingExtraError
from gritkit.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#1b6ca8", "#d95f02", "#2a9d6f", "#8c5fbf", "#8c8c8c", "#c9a227")


def figure(width: float, height: float) -> Figure:
    """An empty one. Raises MissingExtraError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "eval") from None
    drawn = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(drawn)
    return drawn


def save(drawn: Figure, path: Path) -> None:
    """As PNG, whole or not at all."""
    data = io.BytesIO()
    drawn.savefig(data, format="png", dpi=140)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data.getvalue())
