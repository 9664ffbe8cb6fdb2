"""The digest of a model's weights: computed once for a folder, and kept.

Vectors and key-values are filed under it, so it must name the numbers themselves; but nobody hashes 14 GB at every
start. What was computed is kept under a stamp of the files (path, size, times, inode) and of how they were loaded, and
is used again only while both the files and the tensors in memory are as they were.

This module knows nothing about configs, tokenizers or what the digest is for.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gritkit.files import home, write_atomic

_HASHERS = 4
_SAMPLES = 8
_log = logging.getLogger("gritkit")


class WeightsDigest:
    """The digest of one loaded model, and where it may be kept.

    ``files`` are what the weights were read from, just now; without any, nothing is kept.
    """

    def __init__(self, lm: nn.Module, files: Sequence[Path] = ()) -> None:
        self._lm = lm
        self._files = tuple(files)
        self._loaded = _loaded(lm, self._files)

    def value(self) -> str:
        """64 hexadecimal digits over the names, types, shapes and numbers of all weights."""
        kept = self._place()
        if kept is None:
            return digest_of(self._lm)
        if (known := _read(kept)) is not None:
            return known
        value = digest_of(self._lm)
        try:
            write_atomic(kept, value.encode())
        except OSError as error:
            _log.debug("the digest of the weights is not kept: %s", error)
        return value

    def _place(self) -> Path | None:
        """Where this digest is kept; None once a file or a weight in memory is not as it was when it was loaded."""
        if self._loaded is None or _loaded(self._lm, self._files) != self._loaded:
            return None
        stamps, state = self._loaded
        kinds = [(name, str(x.dtype), tuple(x.shape)) for name, x in sorted(self._lm.state_dict().items())]
        samples = [sample for *_, sample in state]
        text = json.dumps([torch.__version__, stamps, kinds, samples])
        return home() / "digests" / hashlib.blake2b(text.encode(), digest_size=32).hexdigest()


def digest_of(lm: nn.Module) -> str:
    """Computed from the weights themselves, several tensors at a time."""
    with ThreadPoolExecutor(_HASHERS) as pool:
        parts = pool.map(_hash, sorted(lm.state_dict().items()))
        return hashlib.blake2b(b"".join(parts), digest_size=32).hexdigest()


def _hash(named: tuple[str, Tensor]) -> bytes:
    name, tensor = named
    digest = hashlib.blake2b(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode(), digest_size=32)
    digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def _loaded(lm: nn.Module, files: Sequence[Path]) -> tuple[list[Any], list[Any]] | None:
    """What must not change between loading and keeping; None without files, or where one cannot be looked at.

    Of the files: path, size, times and inode. Of the weights: where they are, torch's count of writes in place, and a
    few of the numbers, as writing to ``.data`` is not counted.
    """
    if not files:
        return None
    try:
        stamps = [[str(path.resolve()), *_stamp(path)] for path in sorted(files)]
    except OSError:
        return None
    state = sorted(lm.state_dict(keep_vars=True).items())
    return stamps, [[name, x.data_ptr(), _writes(x), _sample(x)] for name, x in state]


def _writes(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # made in inference mode they have no count


def _sample(tensor: Tensor) -> str:
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, len(flat) // _SAMPLES)].cpu().contiguous().view(torch.uint8).numpy().tobytes().hex()


def _stamp(path: Path) -> tuple[int, ...]:
    seen = path.stat()
    return seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino, seen.st_dev


def _read(path: Path) -> str | None:
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    return text if len(text) == 64 and set(text) <= set("0123456789abcdef") else None
