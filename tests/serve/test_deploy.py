"""Files for those who run the server: the dashboard asks for figures that there are, the commands have options that
there are."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from gritkit_serve.access import read_keys

DEPLOY = Path(__file__).resolve().parents[2] / "serve" / "deploy"
yaml = pytest.importorskip("yaml")


def options() -> set[str]:
    from gritkit_serve.command import app

    command: Any = get_command(app)
    return {option for parameter in command.params for option in parameter.opts if option.startswith("--")}


def figures() -> set[str]:
    """Every name in the text that Prometheus reads, from a server that has done nothing yet."""
    from gritkit_serve.engine import Load
    from gritkit_serve.metrics import Metrics, of_load

    metrics = Metrics()
    load = Load("ready", 0, 0, 0, 0, 0, {"finished": 0}, {"generation": 0.0})
    metrics.watch(lambda: of_load(load))
    return set(re.findall(r"^# TYPE (\S+)", metrics.text().decode(), flags=re.MULTILINE))


def test_the_dashboard_asks_for_figures_that_there_are() -> None:
    known = figures()
    panels = json.loads((DEPLOY / "grafana" / "gritkit.json").read_text())["panels"]
    asked = {
        name.removesuffix("_bucket")
        for panel in panels
        for target in panel["targets"]
        for name in re.findall(r"\b(?:gritkit|process)_\w+", target["expr"])
    }
    assert len(asked) > 10
    assert asked <= known
    boxes = [panel["gridPos"] for panel in panels]
    cells = [(x, y) for b in boxes for x in range(b["x"], b["x"] + b["w"]) for y in range(b["y"], b["y"] + b["h"])]
    assert len(cells) == len(set(cells)), "panels overlap"


def test_commands_have_options_that_there_are() -> None:
    unit = (DEPLOY / "gritkit.service").read_text()
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    container = (DEPLOY / "Containerfile").read_text()
    entry = json.loads(re.findall(r"^ENTRYPOINT (.*)$", container, flags=re.MULTILINE)[0])
    default = json.loads(re.findall(r"^CMD (.*)$", container, flags=re.MULTILINE)[0])
    start = shlex.split(re.findall(r"^ExecStart=(.*)$", unit, flags=re.MULTILINE)[0])
    given = [*start, *entry, *default, *compose["services"]["gritkit"]["command"]]
    used = {word for word in given if word.startswith("--")}
    assert {"--kb", "--host", "--api-key-file"} <= used <= options()


def steps(unit: str) -> list[str]:
    """The command lines of the unit's comment."""
    return re.findall(r"^#   (\S.*)$", unit.partition("[Unit]")[0], flags=re.MULTILINE)


def test_the_steps_before_the_unit_make_what_it_starts_with() -> None:
    unit = (DEPLOY / "gritkit.service").read_text()
    said = " ".join(steps(unit))
    (program,) = re.findall(r"^ExecStart=(\S+)/bin/gritkit ", unit, flags=re.MULTILINE)
    (model,) = re.findall(r"GRITKIT_MODEL=(\S+)", unit)
    (keys,) = re.findall(r"^LoadCredential=api-keys:(\S+)$", unit, flags=re.MULTILINE)
    (user,) = re.findall(r"^User=(\S+)$", unit, flags=re.MULTILINE)
    (state,) = re.findall(r"^StateDirectory=(\S+)$", unit, flags=re.MULTILINE)
    for made in (f"-m venv {program} ", f"{program}/bin/pip install ", f" {model} ", f" {keys} ", f" {user} "):
        assert made in said
    assert model.startswith(f"/var/lib/{state}/")


@pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux's")
def test_the_steps_that_make_files_run_on_a_bare_machine(tmp_path: Path) -> None:
    unit = (DEPLOY / "gritkit.service").read_text()
    clone, root = tmp_path / "clone", tmp_path / "root"
    (clone / "out" / "demo" / "model").mkdir(parents=True)
    (clone / "out" / "demo" / "model" / "config.json").write_text("{}")
    shutil.copytree(DEPLOY, clone / "serve" / "deploy")
    (root / "etc" / "systemd" / "system").mkdir(parents=True)
    (root / "var" / "lib").mkdir(parents=True)
    making = [step for step in steps(unit) if step.startswith(("install ", "cp ", "python3 -c "))]
    assert len(making) == 4
    for step in making:
        here = re.sub(r" (/etc|/var)\b", rf" {root}\1", step)
        subprocess.run(["sh", "-e", "-c", here], cwd=clone, check=True, timeout=60)
    assert (root / "var" / "lib" / "gritkit" / "model" / "config.json").is_file()
    assert (root / "etc" / "systemd" / "system" / "gritkit.service").read_text() == unit
    keys = root / "etc" / "gritkit" / "api-keys"
    assert keys.stat().st_mode & 0o777 == 0o600
    (key,) = read_keys(keys)
    assert len(key) >= 16


def test_ends_wait_for_the_drain() -> None:
    from gritkit_serve.settings import Settings

    drain = Settings().drain_seconds
    unit = (DEPLOY / "gritkit.service").read_text()
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert int(re.findall(r"^TimeoutStopSec=(\d+)$", unit, flags=re.MULTILINE)[0]) > drain
    assert int(compose["services"]["gritkit"]["stop_grace_period"].rstrip("s")) > drain


def test_a_health_check_fails_without_harm_while_libraries_are_imported() -> None:
    container = (DEPLOY / "Containerfile").read_text()
    ((seconds, asked),) = re.findall(r"^HEALTHCHECK .*--start-period=(\d+)s CMD (.*)$", container, flags=re.MULTILINE)
    assert int(seconds) >= 60
    assert "/health" in asked
    assert "healthcheck" not in yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["gritkit"]


def test_other_files_are_where_the_compose_file_says() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    mounted = [
        volume.split(":")[0]
        for service in compose["services"].values()
        for volume in service.get("volumes", [])
        if volume.startswith("./")
    ]
    assert mounted
    assert all((DEPLOY / path).exists() for path in mounted)
    prometheus = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    assert prometheus["scrape_configs"][0]["static_configs"][0]["targets"] == ["gritkit:8000"]


def test_what_the_container_copies_is_let_into_its_context() -> None:
    ignored, *admitted = (
        line for line in (DEPLOY.parents[1] / ".dockerignore").read_text().splitlines() if line[:1] not in ("", "#")
    )
    copies = re.findall(r"^COPY (.*) \S+$", (DEPLOY / "Containerfile").read_text(), flags=re.MULTILINE)
    assert ignored == "*"
    assert {f"!{source}" for copy in copies for source in copy.split()} == {one for one in admitted if one[0] == "!"}
