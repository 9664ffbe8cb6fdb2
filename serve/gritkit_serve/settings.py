"""Every limit of the server, with its default and the reason for it. Nothing that a client sends is unbounded.

Limits of the device's work (slots, queues, prompt chunks) belong to the engine and stand in its ``EngineLimits``; here
is what HTTP and the routes may ask for. This module knows nothing about HTTP itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from gritkit.errors import InputError

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a server protects itself. Raises InputError for a limit that would let nothing through."""

    # -- who may ask ---------------------------------------------------------------------------------------------

    api_keys: tuple[str, ...] = field(default=(), repr=False)
    """Any of these opens every route; none at all is for loopback only. Each key has prefix caches of its own."""
    allow_origins: tuple[str, ...] = ()
    """Web pages of these origins may call from a browser (CORS). None by default: a page that somebody happens to visit
    must not drive a server on their machine."""
    log_prompts: bool = False
    """Write request bodies to the log; they hold what users typed."""

    # -- the wire ------------------------------------------------------------------------------------------------

    max_header_bytes: int = 32 << 10
    """Request line and headers together. Cookies and tokens of proxies take a few KB; more only fills memory."""
    max_connections: int = 900
    """Open at once; more are answered 503 and closed. Below the usual limit of 1,024 open files of a process; fewer
    where that limit is lower and cannot be raised."""
    header_seconds: float = 10.0
    """From the first byte of a request (or a connection's opening) to the end of its headers."""
    keep_alive_seconds: float = 75.0
    """An idle connection is kept this long: longer than the 60 s of common load balancers, which would otherwise send
    into a connection that is being closed."""
    stalled_seconds: float = 60.0
    """A client that reads nothing for this long, while its answer waits in a full buffer, is disconnected."""

    # -- bodies --------------------------------------------------------------------------------------------------

    max_body_bytes: int = 8 * MIB
    """JSON. 2,048 passages of 4 KB fit; a request is held in memory two or three times over."""
    max_upload_bytes: int = 64 * MIB
    """Files for a knowledge base (multipart), all of one request; they are spooled to disk."""
    max_buffered_bytes: int = 256 * MIB
    """JSON bodies of all requests in flight together; a request beyond it is answered 429."""
    body_seconds: float = 20.0
    """Time for a body, and a second more for every ``min_body_rate`` bytes that have come."""
    min_body_rate: int = 16 << 10
    """Bytes a second below which a client is taken for one that holds the connection on purpose (408)."""
    max_json_depth: int = 64
    """Nesting. JSON schemas of real applications reach about 20."""
    max_json_containers: int = 100_000
    """Lists and objects in one body: each costs 60 to 100 bytes, of as little as 3 bytes sent."""

    # -- requests ------------------------------------------------------------------------------------------------

    max_requests: int = 256
    """Worked on at once, waiting ones included; more are answered 429 with Retry-After. /health, /ready and /metrics do
    not count."""
    request_seconds: float = 600.0
    """A request that has not ended by then is cancelled: the default patience of the OpenAI clients."""
    drain_seconds: float = 25.0
    """After SIGTERM, for requests that run. Fits into the 30 s that Kubernetes and most supervisors wait for."""

    # -- what one request may ask for ----------------------------------------------------------------------------

    max_inputs: int = 2048
    """Texts of one /v1/embeddings (OpenAI's own limit) or prompts of one /v1/completions."""
    max_input_tokens: int = 300_000
    """Tokens of all texts of one request together (OpenAI's own limit)."""
    max_messages: int = 1024
    """Of one chat."""
    max_n: int = 8
    """Answers to one prompt; each takes a slot of its own."""
    max_stop: int = 16
    """Stop texts; each is searched for after every token."""
    max_stop_chars: int = 256
    """Length of one stop text."""
    max_top_logprobs: int = 20
    """OpenAI's own limit."""
    default_max_tokens: int = 1024
    """Answer length when a chat or an ask names none; the context bounds what may be asked for."""
    max_documents: int = 1024
    """Documents of one rerank, or of one addition to a knowledge base."""
    max_top_k: int = 100
    """Chunks of one search."""

    # -- knowledge bases -----------------------------------------------------------------------------------------

    max_bases: int = 256
    """That clients can make."""
    max_open_bases: int = 8
    """Kept open when nobody asks them, as each has vectors and indices in memory."""
    base_memory_bytes: int = 1024 * MIB
    """Key-values in memory, of all open ones together."""
    max_waiting_writes: int = 16
    """Requests that change one knowledge base or wait for their turn; more are answered 429."""
    max_upload_documents: int = 20_000
    """Documents in the files of one request: each row of a table is one."""
    parse_seconds: int = 30
    """CPU time for the text of one file; a damaged PDF can take any."""
    parse_memory_bytes: int = 2048 * MIB
    """Of the process that reads files of clients."""

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and not value > 0:
                raise InputError(f"{one.name}={value} must be above 0")
        for key in self.api_keys:
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise InputError("an API key must be of printable ASCII characters without spaces")
