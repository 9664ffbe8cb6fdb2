"""LoRA adapters on one model, one of them active at a time, switched between passes by the thread that owns the device.

The plain model's weights are untouched and its fingerprint is computed before any adapter goes in: knowledge bases
belong to the plain model. This module knows nothing about requests or when to switch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gritkit import GritModel
from gritkit.errors import CheckpointError, InputError

_FILES = ("adapter_config.json", "adapter_model.safetensors")


class Adapters:
    """Names of adapters -> layers that are switched on and off.

    Raises:
        CheckpointError: for a folder that is no adapter of this model, or one whose output layer it changes.
    """

    def __init__(self, model: GritModel, folders: Mapping[str, Path]) -> None:
        self.names = tuple(folders)
        self._called = {name: f"adapter_{number}" for number, name in enumerate(folders)}
        """What PEFT calls them: names of modules, which clients' names need not be."""
        self.active: str | None = None
        self._peft: Any = None
        if folders:
            _ = model.fingerprint  # of the plain weights, under the names that they have without adapters
            self._peft = _load(model, {self._called[name]: folder for name, folder in folders.items()})
            self._peft.base_model.disable_adapter_layers()

    def check(self, name: str | None) -> None:
        """Raises InputError for an adapter that there is not."""
        if name is not None and name not in self.names:
            raise InputError(f"adapter={name!r} is none of {', '.join(self.names) or 'the loaded ones: there is none'}")

    def use(self, name: str | None) -> None:
        """From now on passes run under this adapter; None: the plain model."""
        if name == self.active:
            return
        if name is None:
            self._peft.base_model.disable_adapter_layers()
        else:
            if self.active is None:
                self._peft.base_model.enable_adapter_layers()
            self._peft.base_model.set_adapter(self._called[name])
        self.active = name


def _load(model: GritModel, folders: Mapping[str, Path]) -> Any:
    from peft import PeftModel

    peft: Any = None
    for name, folder in folders.items():
        missing = [file for file in _FILES if not (folder / file).is_file()]
        if missing:
            raise CheckpointError(f"{folder} is not an adapter: it has no {' and no '.join(missing)}")
        try:
            if peft is None:
                peft = PeftModel.from_pretrained(model.lm, str(folder), adapter_name=name)
            else:
                peft.load_adapter(str(folder), adapter_name=name)
        except (OSError, ValueError, TypeError, RuntimeError, KeyError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(f"the adapter {folder} does not fit this model: {reason}") from error
        if hasattr(model.lm.get_output_embeddings(), "base_layer"):  # type: ignore[operator]
            raise CheckpointError(
                f"the adapter {folder} changes the output layer, which is not supported beside others: merge it"
            )
    peft.eval()
    return peft
