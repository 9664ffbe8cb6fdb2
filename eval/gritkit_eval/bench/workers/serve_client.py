"""The clients of ``bench serve``: real HTTP out of one process, so that none shares an interpreter with a server.

Each of a job's lists is one client: it sends its requests one after the other, all clients beside each other. What
comes is only stamped with the time while it comes, and read afterwards.
"""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from protocol import serve  # type: ignore[import-not-found,unused-ignore]

PATIENCE_S = 900.0
"""For the next byte: a server that takes requests one after another lets the last one wait for long."""


def load(options: dict[str, Any]) -> Any:
    """Options: none to begin with; then url and ``kind``:

    chat    jobs: for each client its bodies of /v1/chat/completions, which stream
    embed   path, jobs: for each client its bodies
    gap     alone, running, beside: bodies; ``beside`` is sent after so many pieces (``after``) of ``running``
    ask     path, bodies, which stream named events
    post    calls: (path, body), one after the other
    """
    import httpx  # its absence is told at the first, empty request

    if not options:
        return lambda: None, lambda made, path: None

    async def run() -> Any:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(
            base_url=options["url"], timeout=PATIENCE_S, limits=limits, trust_env=False
        ) as client:
            return await KINDS[options["kind"]](client, options)

    return lambda: asyncio.run(run()), lambda made, path: Path(path).write_text(json.dumps(made))


async def chat(client: Any, options: dict[str, Any]) -> Any:
    async def one(body: Any) -> Any:
        return await streamed(client, "/v1/chat/completions", body)

    seconds, requests = await beside_each_other(options["jobs"], one)
    return {"seconds": seconds, "requests": [chat_of(request) for request in requests]}


async def embed(client: Any, options: dict[str, Any]) -> Any:
    async def one(body: Any) -> Any:
        sent = time.perf_counter()
        reply = await client.post(options["path"], json=body)
        return sent, time.perf_counter(), whole(reply)

    seconds, requests = await beside_each_other(options["jobs"], one)
    requests = [
        {
            "seconds": ended - sent,
            "vectors": [one["embedding"] for one in json.loads(reply)["data"]] if options.get("keep") else None,
        }
        for sent, ended, reply in requests
    ]
    return {"seconds": seconds, "requests": requests}


async def gap(client: Any, options: dict[str, Any]) -> Any:
    path = "/v1/chat/completions"
    alone = chat_of(await streamed(client, path, options["alone"]))
    started = asyncio.Event()

    def watch(count: int) -> None:
        if count == options["after"]:
            started.set()

    running = asyncio.ensure_future(streamed(client, path, options["running"], watch))
    waiting = asyncio.ensure_future(started.wait())
    await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    beside = chat_of(await streamed(client, path, options["beside"]))
    return {"alone": alone, "running": chat_of(await running), "beside": beside}


async def ask(client: Any, options: dict[str, Any]) -> Any:
    answers = []
    for body in options["bodies"]:
        sent, pieces = await streamed(client, options["path"], body)
        events = list(events_of(pieces))
        failures = [data for _, name, data in events if name is None and data != "[DONE]"]
        if failures:
            raise RuntimeError(f"the stream failed: {failures[0][:300]}")
        answer = json.loads(next(data for _, name, data in events if name == "answer"))
        first = next(at for at, name, _ in events if name == "delta")
        sources = [[one["id"], one["chunk"]] for one in answer["sources"]]
        answers.append({"first": first - sent, "text": answer["text"], "sources": sources, "reuse": answer["reuse"]})
    return answers


async def post(client: Any, options: dict[str, Any]) -> Any:
    return [json.loads(whole(await client.post(path, json=body))) for path, body in options["calls"]]


KINDS: dict[str, Any] = {"chat": chat, "embed": embed, "gap": gap, "ask": ask, "post": post}


# -- requests ----------------------------------------------------------------------------------------------------------


async def beside_each_other(jobs: list[list[Any]], one: Callable[[Any], Any]) -> tuple[float, list[Any]]:
    """Seconds until the last client was done, and what came of all requests in the order of the jobs."""

    async def client(bodies: list[Any]) -> list[Any]:
        return [await one(body) for body in bodies]

    start = time.perf_counter()
    came = await asyncio.gather(*(client(bodies) for bodies in jobs))
    return time.perf_counter() - start, [each for some in came for each in some]


async def streamed(
    client: Any, path: str, body: Any, watch: Callable[[int], None] = lambda count: None
) -> tuple[float, list[tuple[float, bytes]]]:
    """When it was sent, and the pieces of the answer with the time of their coming."""
    pieces: list[tuple[float, bytes]] = []
    sent = time.perf_counter()
    async with client.stream("POST", path, json=body) as response:
        if response.status_code != 200:
            await response.aread()
            whole(response)
        async for piece in response.aiter_raw():
            pieces.append((time.perf_counter(), piece))
            watch(len(pieces))
    return sent, pieces


def whole(response: Any) -> bytes:
    if not response.is_success:
        raise RuntimeError(f"{response.request.url.path}: {response.status_code} {response.text[:300]}")
    content: bytes = response.content
    return content


# -- events ------------------------------------------------------------------------------------------------------------


def events_of(pieces: list[tuple[float, bytes]]) -> Any:
    """(time, name or None, data) of server-sent events; an event came when its last byte did."""
    rest = b""
    for at, piece in pieces:
        *ended, rest = (rest + piece).split(b"\n\n")
        for lines in ended:
            fields: dict[str, str] = {}
            for line in lines.decode().split("\n"):
                field, _, value = line.partition(": ")
                fields[field] = value
            if "data" in fields:
                yield at, fields.get("event"), fields["data"]


def chat_of(request: tuple[float, list[tuple[float, bytes]]]) -> dict[str, Any]:
    """A chat's stream: the times of its texts, the text, and how many tokens the server counted."""
    sent, pieces = request
    times, texts, tokens = [], [], None
    for at, _, data in events_of(pieces):
        if data == "[DONE]":
            continue
        chunk = json.loads(data)
        if "error" in chunk:
            raise RuntimeError(f"the stream failed: {data[:300]}")
        if chunk.get("usage"):
            tokens = chunk["usage"]["completion_tokens"]
        for choice in chunk["choices"]:
            if choice["delta"].get("content"):
                times.append(at)
                texts.append(choice["delta"]["content"])
    return {"sent": sent, "times": times, "text": "".join(texts), "tokens": tokens}


if __name__ == "__main__":
    serve(load, "httpx")
