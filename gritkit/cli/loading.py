"""Opening the model of a command, with the libraries below kept quiet.

This module knows nothing about what the model is used for.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from gritkit.model import GritModel


def open_model(
    source: str | None,
    *,
    device: str | None = None,
    dtype: str = "auto",
    prompt_format: str | None = None,
    trust_remote_code: bool = False,
) -> GritModel:
    """The model of ``-m/--model`` or GRITKIT_MODEL. Raises typer.BadParameter when neither was given."""
    if not source:
        raise typer.BadParameter("no model: give -m/--model FOLDER or set GRITKIT_MODEL")
    with status(f"Loading {source} ..."):
        quiet_libraries()
        from gritkit.model import GritModel

        return GritModel.from_pretrained(
            source, device=device, dtype=dtype, prompt_format=prompt_format, trust_remote_code=trust_remote_code
        )


def quiet_libraries() -> None:
    """transformers and bitsandbytes (which peft imports where it is installed): errors only, no bars while loading.
    Downloads from the hub keep theirs."""
    import logging as standard

    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging

    logging.set_verbosity_error()
    standard.getLogger("bitsandbytes").setLevel(standard.ERROR)
    logging.disable_progress_bar()
    if sys.stderr.isatty():
        enable_progress_bars()


@contextlib.contextmanager
def status(text: str) -> Iterator[None]:
    """A line on stderr while something runs, gone afterwards; nothing where stderr is no terminal."""
    shown = sys.stderr.isatty()
    if shown:
        print(text, end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
