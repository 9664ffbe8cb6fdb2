"""Who takes part in ``bench serve``, and how one of them is asked: settings, servers, the client, requests.

This module knows nothing about what is measured, compared or reported.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import typer

from gritkit.errors import GritkitError, InputError
from gritkit_eval.bench import serve_servers as servers
from gritkit_eval.bench.harness import Contestant, Running
from gritkit_eval.bench.serve_figures import TIES
from gritkit_eval.bench.serve_material import LONGEST_PROMPT, Material
from gritkit_eval.bench.serve_servers import Loading, Recipe, Server

_PAGE = 256  # tokens that continuous batching keeps together


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    clients: Sequence[int] = (1, 8, 32)
    rounds: int = 3
    requests: int = 2
    """Chats of each client in a round, where that makes 8 at least."""
    least_requests: int = 8
    answer_tokens: int = 64
    """In the mean: answers have half as many, as many, or one and a half times as many."""
    texts: Sequence[int] = (1, 16)
    """To embed, of one request."""
    num_texts: int = 512
    """To embed in a round, at least, where every client has 2 requests."""
    long_tokens: int = 1000
    running_tokens: int = 256
    """Of the stream that runs while the long prompt is read."""
    num_documents: int = 24
    document_tokens: int = 400
    num_questions: int = 8
    batch_tokens: Sequence[int] = (256, 512, 1024)
    """What transformers' continuous batching is tried with on a CPU, to find its best."""
    size: str = "28M"
    dtype: str = "float32"
    device: str = "cpu"
    slots: int | None = None
    peer_python: str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in TIES:
            raise InputError(f"dtype={self.dtype!r} is not one of {', '.join(TIES)}")

    @property
    def command(self) -> str:
        given = ["gritkit", "eval", "bench", "serve", "--size", self.size, "--rounds", str(self.rounds)]
        given += ["--clients", ",".join(map(str, self.clients)), "--answer-tokens", str(self.answer_tokens)]
        given += ["--documents", str(self.num_documents), "--dtype", self.dtype, "--device", self.device]
        return shlex.join([*given, *([] if self.slots is None else ["--slots", str(self.slots)])])

    def num_chats(self, clients: int) -> int:
        """Of one round."""
        return max(self.least_requests, self.requests * clients)

    def lengths(self, count: int) -> list[int]:
        """Tokens of so many answers."""
        mean = self.answer_tokens
        return [(mean // 2, mean, mean + mean // 2)[number % 3] or 1 for number in range(count)]


@dataclass(frozen=True)
class Endpoint:
    """A server and where it takes the job."""

    server: Server
    name: str
    path: str = ""


@dataclass
class Contest:
    """One run of the benchmark: its texts, its workers, its servers and what is noted about them."""

    place: Path
    settings: Settings
    material: Material
    client: Running
    library: Running
    stack: ExitStack
    """Ends the servers."""
    versions: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    batching: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """Of the model."""
        return self.place / "model"

    @property
    def loading(self) -> Loading:
        return Loading(self.settings.dtype, self.settings.device)

    @property
    def python(self) -> str:
        """The peers'."""
        return self.settings.peer_python or sys.executable

    def start(self, recipe: Recipe) -> Server:
        """A server that runs until the end."""
        typer.echo(f"starting {recipe.name}", err=True)
        return self.stack.enter_context(Server(recipe))

    def has(self, peer: str) -> bool:
        """Whether everything that a peer needs is there; what is not is noted."""
        found, lacking = servers.versions_of(self.python, servers.NEEDED[peer])
        if lacking:
            self.skipped[peer] = f"no {', '.join(lacking)}"
            return False
        self.versions.update(found)
        return True

    # -- what is asked -------------------------------------------------------------------------------------------

    def bodies(self, count: int) -> list[dict[str, Any]]:
        """Chats with prompts that no server has seen."""
        prompts = islice(self.material.prompts, count)
        return [body_of(prompt, length) for prompt, length in zip(prompts, self.settings.lengths(count), strict=True)]

    def chat(self, server: Server, bodies: Sequence[dict[str, Any]], clients: int) -> Any:
        """All of them, by so many clients."""
        jobs = [bodies[client::clients] for client in range(clients)]
        return self.ask(self.client, kind="chat", url=server.url, jobs=jobs)

    def embed(self, endpoint: Endpoint, jobs: Sequence[Any], *, keep: bool = False) -> Any:
        """The jobs of each client; without ``keep`` the vectors are not kept."""
        url = endpoint.server.url
        return self.ask(self.client, kind="embed", url=url, path=endpoint.path, jobs=jobs, keep=keep)

    def ask_library(self, kind: str, **options: Any) -> Any:
        """What the library makes of it, without a server."""
        how = {"dtype": self.settings.dtype, "device": self.settings.device}
        return self.ask(self.library, kind=kind, folder=str(self.folder), **how, **options)

    def ask(self, who: Running, **options: Any) -> Any:
        """What one run of a worker saves as JSON."""
        path = self.place / "made.json"
        who.ask(load=options)
        who.ask(run=True)
        who.ask(save=str(path))
        return json.loads(path.read_text(encoding="utf-8"))


def worker_of(stack: ExitStack, name: str) -> Running:
    """A worker that is ended with the stack. Raises GritkitError where its library is missing."""
    made = Running(Contestant(name, f"serve_{name}.py", {}))
    stack.callback(made.close)
    if made.missing:
        raise GritkitError(f"the {name} of this benchmark needs {made.missing}: pip install {made.missing}")
    return made


def body_of(prompt: str, max_tokens: int) -> dict[str, Any]:
    """One chat, the likeliest tokens, streamed."""
    return {
        "messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip


def by_client(items: Sequence[Any], clients: int) -> list[Any]:
    """In the order in which the client gives back what came of them."""
    return [item for client in range(clients) for item in items[client::clients]]


# -- servers -----------------------------------------------------------------------------------------------------------


def contestants(current: Contest) -> tuple[Server, list[Endpoint], list[Endpoint]]:
    """gritkit's, then everybody who chats, and everybody who embeds; gritkit is the first of each."""
    folder, loading = current.folder, current.loading
    ours = current.start(servers.gritkit(folder, loading, slots=current.settings.slots))
    chats = [Endpoint(ours, "gritkit")]
    embeddings = [Endpoint(ours, "gritkit", "/v1/embeddings")]
    if current.has("transformers serve"):
        one_by_one = servers.transformers(folder, loading, python=current.python)
        chats.append(Endpoint(current.start(one_by_one), one_by_one.name))
        batching = _best_batching(current)
        chats.append(Endpoint(current.start(batching), batching.name))
    if current.has("sentence-transformers"):
        peer = current.start(servers.sentence_transformers(folder, loading, python=current.python))
        embeddings += [
            Endpoint(peer, "sentence-transformers, in threads", "/v1/embeddings"),
            Endpoint(peer, "sentence-transformers, one at a time", "/one-at-a-time/v1/embeddings"),
        ]
    return ours, chats, embeddings


def _best_batching(current: Contest) -> Recipe:
    """Continuous batching with what makes it fastest here.

    On a CPU it takes 60 % of the memory by default and masks that are as large as a batch may be times all of its
    cache, which makes every step slow: it gets the cache that this load needs, and the best of a few sizes of a batch.
    """
    settings = current.settings
    if settings.device != "cpu":
        return servers.transformers(current.folder, current.loading, python=current.python, batching=())
    longest = LONGEST_PROMPT + 2 * settings.answer_tokens
    pages = max(settings.clients) * -(-longest // _PAGE)
    pages += 2 * -(-(settings.long_tokens + settings.running_tokens) // _PAGE)
    tries = [["--cb-num-blocks", str(pages), "--cb-max-batch-tokens", str(size)] for size in settings.batch_tokens]
    recipes = [
        servers.transformers(current.folder, current.loading, python=current.python, batching=options)
        for options in tries
    ]
    best = 0
    if len(tries) > 1:
        seconds = [_tried(current, recipe) for recipe in recipes]
        best = seconds.index(min(seconds))
    current.batching = tries[best]
    return recipes[best]


def _tried(current: Contest, recipe: Recipe) -> float:
    """Seconds of a round after one that is not counted, in which it makes its cache."""
    typer.echo(f"trying {shlex.join(recipe.command[-4:])}", err=True)
    clients = min(8, max(current.settings.clients))
    with Server(recipe) as server:
        current.chat(server, current.bodies(2 * clients), clients)
        made = current.chat(server, current.bodies(2 * clients), clients)
    return float(made["seconds"])
