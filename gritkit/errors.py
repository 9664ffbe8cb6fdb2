"""Every error a user can meet: one line that says what is wrong, with the value, and what to do.

All of them derive from :class:`GritkitError`, so that a program can catch what gritkit raises on purpose and let
everything else, which is a defect, pass. The command line prints the message alone and exits with code 1.

This module knows nothing about models, files or the command line.
"""

from __future__ import annotations


class GritkitError(Exception):
    """Base of all errors that gritkit raises on purpose."""


class InputError(GritkitError, ValueError):
    """An argument, a text or a message that cannot be used."""


class TooLongError(InputError):
    """A text of more tokens than the model reads, or than it was to read."""


class CheckpointError(GritkitError):
    """A model folder that is missing, unsafe, incomplete or of another format."""


class UnsupportedModelError(GritkitError):
    """An architecture that cannot honour the attention plan, or an option that it lacks."""


class RecordError(GritkitError, ValueError):
    """Training or evaluation data with bad records; the message lists every one with its file and line."""


class StoreError(GritkitError):
    """A knowledge base or cache on disk that cannot be opened or written."""


class GenerationError(GritkitError):
    """An answer that cannot be written on; those beside it know nothing of that."""


class MissingExtraError(GritkitError, ImportError):
    """An optional dependency that is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"this needs the package {package!r}, which is not installed: pip install 'gritkit[{extra}]'")
