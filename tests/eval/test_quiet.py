from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gritkit_eval.cli.quiet import quiet_mteb
from tests.models import grit_model

pytest.importorskip("mteb")
WORDS = ("beaver", "otter", "owl", "fox", "hare", "crow", "newt", "toad")


def test_what_the_environment_says_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTEB_CACHE", "/mine")
    for name in ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "so that it is put back")
        monkeypatch.delenv(name)
    quiet_mteb()
    assert (os.environ["MTEB_CACHE"], os.environ["TQDM_DISABLE"]) == ("/mine", "1")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["mteb", "instructions", "efficiency"])
def test_commands_on_files_draw_no_bars_of_mtebs_and_leave_nothing_in_the_home_directory(
    tmp_path: Path, command: str
) -> None:
    folder = tmp_path / "data/retrieval/animals"
    folder.mkdir(parents=True)
    rows = {
        "corpus": [{"_id": one, "title": "", "text": f"the {one} sleeps all day"} for one in WORDS],
        "queries": [{"_id": f"q-{one}", "text": f"who is the {one}?"} for one in WORDS],
        "qrels": [{"query_id": f"q-{one}", "corpus_id": one, "score": 1} for one in WORDS],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    grit_model("llama", prompt_format="grit").save_pretrained(tmp_path / "model")
    (tmp_path / "home").mkdir()
    given = {**os.environ, "HOME": str(tmp_path / "home")}
    for name in ("MTEB_CACHE", "TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS", "GRITKIT_SHARED"):
        given.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-m", "gritkit", "eval", command, "-m", "tiny=model", "--data", "data"],
        cwd=tmp_path, env=given, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "%|" not in done.stderr
    assert not (tmp_path / "home/.cache/mteb").exists()
