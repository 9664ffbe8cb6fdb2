from __future__ import annotations

import contextlib
import functools
import json
import socket
import subprocess
import sys

import pytest

from gritkit_serve.descriptors import OTHERS, room_within
from gritkit_serve.listening import BACKLOG
from gritkit_serve.settings import Settings
from tests.serve.serving import PATIENCE_S, rest

resource = pytest.importorskip("resource")
MOST = Settings().max_connections

PROGRAM = """
import resource, sys
from gritkit_serve.descriptors import room_for
soft, hard, wanted = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(room_for(wanted), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""
FLOOD = """
import asyncio, logging, resource, socket, sys
from gritkit_serve import logs
from gritkit_serve.app import create_app
from gritkit_serve.listening import bind
from gritkit_serve.server import Server
from gritkit_serve.service import Service
from gritkit_serve.settings import Settings
from tests.serve.serving import PATIENCE_S, rest

resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
logs.configure(level=logging.WARNING)
listener = bind("127.0.0.1", 0)
service = Service("tiny", Settings(drain_seconds=1))

class Flooded(Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        print(listener.getsockname()[1], flush=True)

Flooded(service, create_app(service)).run(sockets=[listener])
"""


@pytest.mark.parametrize(
    ("soft", "hard", "room", "raised"),
    [
        (256, 4096, MOST, MOST + BACKLOG + OTHERS),  # as on a Mac
        (1024, 1024, MOST, 1024),
        (256, 512, 512 - OTHERS, 512),
        (256, 256, 256 - OTHERS, 256),
        (4000, 4096, MOST, 4000),
    ],
)
def test_the_limit_is_raised_as_far_as_connections_need_it(soft: int, hard: int, room: int, raised: int) -> None:
    """In a process of its own: what was lowered can never be raised again."""
    own = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if own != resource.RLIM_INFINITY and own < hard:
        pytest.skip("the limit of this process is lower")
    given = [str(number) for number in (soft, hard, MOST)]
    ended = subprocess.run([sys.executable, "-c", PROGRAM, *given], capture_output=True, text=True, check=True)
    assert tuple(map(int, ended.stdout.split())) == (room, raised, hard)


def test_there_is_always_room_for_one() -> None:
    assert [room_within(limit, MOST) for limit in (0, 1, 20, 10_000)] == [1, 1, 10, MOST]


def answers(connection: socket.socket) -> bool:
    connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answer = b""
    while not answer.endswith(b"}") and (more := connection.recv(4096)):  # headers and body may come apart
        answer += more
    return answer.startswith(b"HTTP/1.1 200 ")


def test_more_connections_than_files_leave_a_server_that_answers_and_a_short_log() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FLOOD], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        port = int(server.stdout.readline())
        with contextlib.ExitStack() as stack:
            stack.callback(server.kill)
            connect = functools.partial(socket.create_connection, ("127.0.0.1", port), PATIENCE_S)
            first = stack.enter_context(connect())
            assert answers(first)
            many = [stack.enter_context(connect()) for _ in range(300)]
            assert answers(first)
            assert rest(many[-1]).startswith(b"HTTP/1.1 503 ")
            server.terminate()
            events = [json.loads(line) for line in server.stderr]
    assert events[0]["max_connections"] == 256 - OTHERS
    said = [event["event"] for event in events[1:]]
    assert len([event for event in said if event.startswith("socket.accept() out of system resource")]) <= 1
    assert len(said) < 10
