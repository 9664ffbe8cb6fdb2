from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from gritkit.prompts import GRIT
from tests.models import grit_model

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grit_model("mistral_window", prompt_format="grit").save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(block.replace('"path/or/hub-id"', repr(str(tmp_path / "model"))), names)
    assert np.shape(names["vectors"])[0] == 2
    assert "beavers" in capsys.readouterr().out


def test_the_tree_of_the_readme_is_the_tree() -> None:
    tree = README.split("## The tree")[1].split("```")[1]
    core, rest = tree.split("\nrecipes/")
    named = _names(core) - {"gritkit/"}
    for path in (ROOT / "gritkit").iterdir():
        name = f"{path.name}/" if path.is_dir() else path.name
        if not name.startswith("__") and name != "py.typed":
            assert name in named, f"README's tree lacks gritkit/{name}"
    for name in named:
        assert (ROOT / "gritkit" / name).exists(), f"README's tree names {name}, which is not there"
    evaluation = rest.split("\neval/gritkit_eval/")[1].split("\nserve/")[0]
    for name in _names(evaluation):
        assert (ROOT / "eval" / "gritkit_eval" / name).exists(), f"README's tree names {name}, which is not there"


def _names(tree: str) -> set[str]:
    return set(re.findall(r"[a-z_]+(?:\.py|/)", tree))


def test_formats_stand_in_prompts_alone() -> None:
    for path in (ROOT / "gritkit").rglob("*.py"):
        if path.name != "prompts.py":
            assert not any(marker in path.read_text(encoding="utf-8") for marker in GRIT.markers), path
