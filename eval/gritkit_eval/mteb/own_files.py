"""mteb's own result files, as its ``ResultCache`` reads them: ``results/<model>/<revision>/<task>.json``.

What mteb made of each outcome is kept under the outcome's key too (``task_results/<task>-<key>.json``), so that a run
that finds an outcome can put mteb's file back where another one, of other data or of another name of the model, stands
or none does. Models that differ in more than their weights (dimensions, instructions) have a folder each, by mteb's
``experiment_name``.

This module knows nothing about how anything is measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gritkit_eval.outcome import Outcome, file_name


class OwnFiles:
    """Of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, outcome: Outcome, result: Any, meta: Any) -> None:
        """``result``: mteb's TaskResult. ``meta``: the model's ModelMeta."""
        kept = self._kept(outcome)
        kept.parent.mkdir(parents=True, exist_ok=True)
        result.to_disk(kept)
        self._cache().save_to_cache(result, meta)

    def restore(self, outcome: Outcome, meta: Any) -> None:
        """The file of an outcome that was measured before, unless it stands there."""
        from mteb import TaskResult

        kept, cache = self._kept(outcome), self._cache()
        if not kept.is_file():
            return
        path = cache.get_task_result_path(model_name=meta, task_name=outcome.task)
        if not path.is_file() or path.read_bytes() != kept.read_bytes():
            cache.save_to_cache(TaskResult.from_disk(kept, load_historic_data=False), meta)

    def _kept(self, outcome: Outcome) -> Path:
        return self.folder / "task_results" / file_name(outcome.task, outcome.key)

    def _cache(self) -> Any:
        from mteb.cache import ResultCache

        return ResultCache(self.folder)
