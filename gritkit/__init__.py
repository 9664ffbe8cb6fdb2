"""gritkit: one decoder language model that embeds and generates.

Names are loaded on first use (PEP 562), so that ``gritkit --help`` never imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["GritModel", "__version__"]

if TYPE_CHECKING:
    from gritkit.model import GritModel


def __getattr__(name: str) -> Any:
    if name == "GritModel":
        from gritkit.model import GritModel

        return GritModel
    raise AttributeError(f"module 'gritkit' has no attribute {name!r}")
