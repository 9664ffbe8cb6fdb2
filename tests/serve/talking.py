"""What tests of routes say and read: posts, and the events of a stream.

answer = post(client, "/v1/chat/completions", messages=[...])            the JSON of a 200
error = refused(client, "/v1/chat/completions", 400, n=0)                the "error" of another status
chunks = streamed(client, "/v1/chat/completions", messages=[...])        the JSON of each event before [DONE]
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx

from tests.serve.serving import PATIENCE_S, Running


def post(client: httpx.Client, path: str, **body: Any) -> Any:
    """The JSON of an answer that must be 200."""
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    return response.json()


def refused(client: httpx.Client, path: str, status: int, **body: Any) -> dict[str, Any]:
    """What is said of a request that must fail with this status."""
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    said = response.json()
    assert set(said) == {"error"}
    assert set(said["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = said["error"]
    return error


def events_of(text: str) -> list[str]:
    """The data of the events of a whole stream; comments are left out."""
    assert text.endswith("\n\n")
    blocks = [block for block in text[:-2].split("\n\n") if not block.startswith(":")]
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks), text
    return [block[len("data: ") :] for block in blocks]


def streamed(client: httpx.Client, path: str, **body: Any) -> list[Any]:
    """The events of a stream that must come to its end."""
    response = client.post(path, json={**body, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, done = events_of(response.text)
    assert done == "[DONE]"
    return [json.loads(event) for event in events]


@contextlib.contextmanager
def asking(server: Running, path: str, body: dict[str, Any]) -> Iterator[socket.socket]:
    """A request on a connection of its own, which is cut in the end."""
    data = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        yield connection


def until(reached: Callable[[], bool], seconds: float) -> bool:
    """Whether something in the engine is reached in time."""
    end = time.monotonic() + seconds
    pause = threading.Event()
    while not reached():
        if time.monotonic() > end:
            return False
        pause.wait(0.005)
    return True


def running(server: Running) -> bool:
    """Whether one generation has a slot."""
    return server.service.engine.load().running == 1
