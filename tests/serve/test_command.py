"""``gritkit serve`` as a process of its own: its one line, its signals, its exit codes."""

from __future__ import annotations

import contextlib
import json
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from gritkit_serve.engine import EngineLimits
from tests.cli.conftest import Result, environment, gritkit
from tests.models import grit_model

PATIENCE_S = 300.0
"""For a process to start on a busy machine."""
MESSAGES = [{"role": "user", "content": "the quick brown fox"}]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve") / "tiny-model"
    grit_model("qwen3", prompt_format="grit").save_pretrained(folder)
    return folder


@dataclass
class Process:
    """A server that is ready."""

    process: subprocess.Popen[bytes]
    url: str
    line: str
    log: Path

    def client(self, **given: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, trust_env=False, timeout=PATIENCE_S, **given)

    def end(self) -> int:
        return self.process.wait(PATIENCE_S)

    def events(self) -> list[dict[str, Any]]:
        """The log; every line of it is an object."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]


Start = Callable[..., Process]


def line_of(process: subprocess.Popen[bytes], log: Path) -> str:
    """The first line on stdout."""
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], PATIENCE_S)
    line = process.stdout.readline().decode() if readable else ""
    assert line, log.read_text()
    return line


@pytest.fixture
def start(model_folder: Path, tmp_path: Path) -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def start(*arguments: str, **extra: str) -> Process:
            log = tmp_path / "log"
            opened = stack.enter_context(log.open("wb"))
            command = [sys.executable, "-m", "gritkit", "serve", str(model_folder), "--port", "0", *arguments]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=opened, env=environment(**extra))
            stack.callback(process.wait)
            stack.callback(process.kill)
            stack.enter_context(process.stdout)  # type: ignore[arg-type]
            line = line_of(process, log)
            found = re.search(r"http://\S+", line)
            assert found is not None, line
            return Process(process, found[0], line, log)

        yield start


def streaming(process: Process, stack: contextlib.ExitStack, **given: Any) -> Iterator[str]:
    """The lines of a chat's stream, of which the first has come."""
    client = stack.enter_context(process.client())
    body = {"model": "tiny-model", "messages": MESSAGES, "stream": True, "max_tokens": 400, **given}
    answer = stack.enter_context(client.stream("POST", "/v1/chat/completions", json=body))
    assert answer.status_code == 200, answer.read()
    lines = (line for line in answer.iter_lines() if line)
    assert next(lines).startswith("data: ")
    return lines


@pytest.mark.slow
def test_it_says_where_it_is_answers_and_drains_on_sigterm(start: Start) -> None:
    since = time.monotonic()
    server = start("--kb", "bases")
    seconds = time.monotonic() - since
    said = re.fullmatch(r"tiny-model is ready at (http://127\.0\.0\.1:\d+) after (\d+\.\d) s\n", server.line)
    assert said is not None
    assert float(said[2]) <= seconds
    with contextlib.ExitStack() as stack, server.client() as client:
        assert client.get("/ready").status_code == 200
        assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["tiny-model"]
        assert client.get("/v1/kb").json()["data"] == []
        lines = streaming(server, stack)
        server.process.send_signal(signal.SIGTERM)
        whole = list(lines)  # it ends whole, though the server drains
        assert whole[-1] == "data: [DONE]"
        last = json.loads(whole[-2].removeprefix("data: "))
        assert last["choices"][0]["finish_reason"] in ("stop", "length")
        assert server.end() == 0
    events = server.events()
    assert "draining" in [event["event"] for event in events]
    assert {event["level"] for event in events} == {"info"}
    assert server.process.stdout is not None
    assert server.process.stdout.read() == b""
    with pytest.raises(ConnectionError), socket.create_connection(httpx.URL(server.url).netloc.decode().split(":")):  # type: ignore[arg-type]
        pass


def unfinished(server: Process, stack: contextlib.ExitStack) -> None:
    """A request that is being worked on and does not end by itself: half of its body is missing."""
    connection = stack.enter_context(socket.create_connection(("127.0.0.1", httpx.URL(server.url).port or 0)))
    connection.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
    connection.sendall(b"Content-Length: 9\r\n\r\n{")
    with server.client() as client:
        until = time.monotonic() + PATIENCE_S
        while "gritkit_requests_in_flight 2.0" not in client.get("/metrics").text:  # it, and the one that asks
            assert time.monotonic() < until


@pytest.mark.slow
def test_what_does_not_end_in_time_is_cancelled_and_the_end_is_in_order(start: Start) -> None:
    server = start("--drain-seconds", "0.3")
    with contextlib.ExitStack() as stack:
        unfinished(server, stack)
        server.process.send_signal(signal.SIGINT)
        assert server.end() == 0
    assert "cancelling what still runs" in [event["event"] for event in server.events()]


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(start: Start) -> None:
    server = start("--drain-seconds", "1000")
    with contextlib.ExitStack() as stack, server.client() as client:
        unfinished(server, stack)
        server.process.send_signal(signal.SIGTERM)
        until = time.monotonic() + PATIENCE_S
        while (answer := client.get("/ready")).status_code == 200:
            assert time.monotonic() < until
        assert answer.json()["error"]["code"] == "draining"  # it still listens, and says so
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 128 + signal.SIGTERM


@pytest.mark.slow
def test_keys_names_and_limits_reach_the_server(start: Start, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("the-key-of-this-server\n")
    keys.chmod(0o600)
    server = start(
        "--api-key-file", str(keys), "--host", "0.0.0.0", "--model-name", "mine", "--max-body-mib", "0.001",
        GRITKIT_API_KEY="not-this-one",
    )  # fmt: skip
    assert "mine is ready at http://0.0.0.0:" in server.line
    url = server.url.replace("0.0.0.0", "127.0.0.1")
    with httpx.Client(base_url=url, trust_env=False, timeout=PATIENCE_S) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/v1/models").status_code == 401
        client.headers["authorization"] = "Bearer not-this-one"
        assert client.get("/v1/models").status_code == 401
        client.headers["authorization"] = "Bearer the-key-of-this-server"
        assert client.get("/v1/models").json()["data"][0]["id"] == "mine"
        assert client.post("/v1/embeddings", json={"model": "mine", "input": "x" * 2000}).status_code == 413


def refused(*arguments: str, **extra: str) -> Result:
    result = gritkit("serve", *arguments, **extra)
    assert result.code != 0
    assert result.stdout == b""
    assert "Traceback" not in result.stderr
    return result


def test_an_open_address_without_a_key_is_refused(model_folder: Path) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        result = refused(str(model_folder), "--host", host, "--port", "0")
        assert result.code == 1
        assert result.error.startswith(
            f"Error: --host '{host}' can be reached from other machines and needs an API key"
        )


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "no model: give MODEL"),
        (("m", "--adapter", "x"), 2, "--adapter 'x' must be NAME=FOLDER"),
        (("m", "--adapter", "x=nowhere"), 1, "--adapter x: there is no folder nowhere"),
        (("m", "--adapter", "m=."), 2, "--adapter 'm' is called like the model: give it another name"),
        (("m", "--model-name", "x", "--adapter", "x=."), 2, "--adapter 'x' is called like the model"),
        (("m", "-m", "other"), 2, "two models, MODEL 'm' and -m 'other': give one of them"),
        (("m", "--allow-origin", "*"), 1, "lets any web page use this server"),
        (("m", "--allow-origin", "example.org"), 1, "must be like https://example.org"),
        (("m", "--api-key-file", "nowhere"), 1, "No such file"),
        (("m", "--drain-seconds", "0"), 1, "drain_seconds=0.0 must be above 0"),
        (("m", "--max-body-mib", "nan"), 1, "Error: --max-body-mib nan must be a number above 0"),
        (("m", "--max-body-mib", "0"), 1, "Error: --max-body-mib 0 must be a number above 0"),
        (("m", "--max-upload-mib", "inf"), 1, "Error: --max-upload-mib inf must be a number above 0"),
        (("m", "--max-upload-mib", "1e308"), 1, "Error: --max-upload-mib 1e+308 must be a number above 0"),
        (("m", "--host", "no.such.host.invalid"), 1, "needs an API key"),
        (("m", "--port", "99999"), 2, "Invalid value for '--port'"),
    ],
)
def test_what_cannot_be_used_is_one_line(arguments: tuple[str, ...], code: int, says: str) -> None:
    result = refused(*arguments)
    assert result.code == code
    assert says in result.error


def test_a_model_that_is_given_counts_more_than_the_environments() -> None:
    assert "--adapter 'mine' is called like" in refused("mine", "--adapter", "mine=.", GRITKIT_MODEL="other").error


@pytest.mark.slow
def test_a_port_in_use_and_a_missing_model_are_one_line_each(model_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        in_use = refused(str(model_folder), "--port", port)
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in in_use.error
    missing = refused("no/such/model", "--port", "0")
    assert missing.code == 1
    assert "no/such/model" in missing.stderr.splitlines()[-1]
    assert missing.stderr.splitlines()[-1].startswith("Error: ")


def test_its_help_needs_neither_torch_nor_a_web_server() -> None:
    code = (
        "import sys\n"
        "from gritkit.cli import main\n"
        "assert main(['serve', '--help']) == 0\n"
        "heavy = {'torch', 'transformers', 'fastapi', 'uvicorn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = gritkit(code=code, COLUMNS="500")
    assert result.code == 0, result.stderr
    limits = EngineLimits()
    for flag, value in (("--slots", limits.slots), ("--max-length", limits.slot_tokens),
                        ("--max-waiting", limits.waiting_generations)):  # fmt: skip
        (text,) = re.findall(rf"{flag} .*?if not given", " ".join(result.out.split()))
        assert text.endswith(f" {value} if not given")
