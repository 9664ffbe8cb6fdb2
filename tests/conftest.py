"""What every test stands on: no network, one thread a process, and the shared data folder where it exists.

Models in tests are tiny: a second thread costs more than it brings, and tests run in several processes at once.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

# Read by the libraries when they are imported, so they are set before any test imports one.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # also of the processes that tests start
os.environ["GRITKIT_HOME"] = tempfile.mkdtemp(prefix="gritkit-tests-")  # nothing of the user's is read or written

import pytest
import torch

torch.set_num_threads(1)
atexit.register(shutil.rmtree, os.environ["GRITKIT_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of models and data sets beside the checkout, or the one that GRITKIT_SHARED names."""
    folder = Path(os.environ.get("GRITKIT_SHARED") or Path(__file__).parents[2] / "shared")
    if not folder.is_dir():
        pytest.skip("the shared data folder is not beside this checkout")
    return folder
