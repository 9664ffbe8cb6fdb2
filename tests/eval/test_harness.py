from __future__ import annotations

from pathlib import Path

import pytest

from gritkit.errors import GritkitError
from gritkit_eval.bench.harness import WORKERS, Contestant, Running, Timing, interleave

WORKER = f"""
import sys
sys.path.insert(0, {str(WORKERS)!r})
from protocol import serve

def load(options):
    if "needs" in options:
        __import__(options["needs"])
    log = open(options["log"], "a")
    def job():
        print("a library's chatter")  # must not reach the protocol
        if options.get("dies"):
            raise SystemExit(3)
        log.write(options["name"])
        log.flush()
        return options["name"]
    return job, lambda result, path: open(path, "w").write(result)

serve(load, "pytest")
"""


@pytest.fixture
def contestant(tmp_path: Path) -> object:
    script = tmp_path / "worker.py"
    script.write_text(WORKER, encoding="utf-8")

    def make(name: str, **options: object) -> Contestant:
        return Contestant(name, str(script), {"name": name, "log": str(tmp_path / "log"), **options})

    return make


def test_rounds_run_each_once_in_rotating_order(contestant: object, tmp_path: Path) -> None:
    running = [Running(contestant(name)) for name in "abc"]  # type: ignore[operator]
    timings = interleave(running, rounds=3)
    running[1].ask(save=str(tmp_path / "saved"))
    for each in running:
        each.close()
    assert (tmp_path / "log").read_text() == "abc" + "bca" + "cab" + "abc"
    assert {name: len(timing.seconds) for name, timing in timings.items()} == {"a": 3, "b": 3, "c": 3}
    assert (tmp_path / "saved").read_text() == "b"
    assert running[0].versions == {"pytest": pytest.__version__}


def test_a_missing_library_is_said_and_no_error(contestant: object) -> None:
    running = Running(contestant("a", needs="no_such_library"))  # type: ignore[operator]
    assert running.missing == "no_such_library"
    running.close()


def test_a_contestant_that_dies_is_named(contestant: object) -> None:
    running = Running(contestant("short-lived", dies=True))  # type: ignore[operator]
    with pytest.raises(GritkitError, match="short-lived"):
        running.ask(run=True)
    running.close()


def test_ratios_are_medians_of_rounds() -> None:
    ours, theirs = Timing((1.0, 2.0, 4.0)), Timing((2.0, 3.0, 12.0))
    assert ours.ratio_to(theirs) == 2.0  # of 2, 1.5 and 3
    assert ours.median == 2.0
    assert ours.spread == (1.0, 4.0)
