"""Keeping mteb to what a command asked of it.

This module knows nothing about tasks or models.
"""

from __future__ import annotations

import os
import tempfile


def quiet_mteb() -> None:
    """No bars for every subset and corpus, and no folder in the home directory for results that are kept elsewhere.

    To be called before mteb, datasets or tqdm is imported; what the environment says already stays. The default cache
    of results, which mteb makes when it is imported, becomes a folder that is there anyway: nothing is written to it.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("MTEB_CACHE", tempfile.gettempdir())
