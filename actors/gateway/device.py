"""HTTP: the gateway's shell.  One thread answers, from one immutable snapshot.

The loop's thread swaps the snapshot in (`Publish`), the HTTP thread only reads it, so neither ever
waits for the other, and what a client does ends in this process.  That is bounded too: so many
connections, so large a request, so long for one request and its answer, and so long between two of
them; then the connection is cut (the library's own timeout begins only after the first answer).

A newcomer is always let in, so a probe is answered however many connections do nothing: above the
limit the one goes that was answered, or opened, longest ago.  An answer takes microseconds, so that
one waits for its client and not for us.  So few are accepted at a time that whoever has sent its
request with its connection is read before as many others have come as there is room for.

A scrape takes tens of milliseconds to write, so what was written serves everybody for a while: a
client that asks without a pause costs the probes nothing either.

What the libraries have to say of a client's bytes comes into our log as their words (logs.py).

    /healthz, /health   200 while this process lives
    /readyz             200, or 503 with the reasons, as JSON
    /metrics            Prometheus text, or OpenMetrics for whoever accepts it
    /v1/status          the newest Report as JSON, with its age
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from pegaflow.actors.runtime.loop import Loop
from pegaflow.actors.runtime.workers import Workers
from pegaflow.observe import metrics
from pegaflow.service import logs
from pegaflow.wire.control import Report
from pegaflow.wire.jobs import Done, Listen, Listening, Publish, Result
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.units import Bytes, Count, Seconds

CONNECTIONS_MAX: Count = 64
"""Connections at once: a few scrapers and people; one more costs the one that was idle longest."""

ACCEPTS_MAX: Count = 16
"""Connections accepted before anything else is looked at: a quarter of those that there may be."""

BACKLOG: Count = 128
"""Connections that the kernel keeps for us: a burst is let in a few at a time and not refused."""

REQUEST_S: Seconds = 5.0
"""Time for one request and its answer, from the opening of the connection or from the first byte of
a further request: a header is one packet, and who sends it byte by byte wants our connections."""

IDLE_S: Seconds = 30.0
"""Time between two requests: twice a scrape's usual interval, so that a scraper may keep its
connection."""

REQUEST_BYTES_MAX: Bytes = 16 << 10
"""Largest request line with headers; a body is never read."""


RENDERED_S: Seconds = 1.0
"""What was written of a report serves so long: reports come as often.  Ages in it are by so much
too low at most."""


class HttpDevice:
    """The gateway's jobs: listen, publish."""

    def __init__(self) -> None:
        self.snapshot: Report | None = None  # replaced as a whole, never changed
        self._workers = Workers()

    def attach(self, loop: Loop) -> None:
        """Deliver completions into this loop."""
        self._workers.deliver_to(loop)

    def work(self, number: int, job: Message) -> Result | None:
        """Publish at once; listen on the worker, since a name may have to be resolved."""
        if isinstance(job, Publish):
            self.snapshot = job.report
            return Done(Status.OK)
        assert isinstance(job, Listen)
        self._workers.put(number, lambda: self._listen(job))
        return None

    def _listen(self, job: Listen) -> Listening | Done:
        try:
            listener = _listener(job.address)
        except OSError as err:
            return Done(Status.BUSY, err.strerror or str(err))
        address = listener.getsockname()
        serve(listener, lambda: self.snapshot)
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        return Listening(f"{host}:{address[1]}", address[1])

    def close(self) -> None:
        """Nothing: the thread and its socket end with the process."""


def serve(listener: socket.socket, snapshot: Callable[[], Report | None]) -> None:
    """Answer HTTP, in a thread of its own, for as long as the process lives.

    Args:
        listener: bound and listening.
        snapshot: the newest report; None until there is one.
    """
    config = uvicorn.Config(
        _app(snapshot),
        http=_Bounded,
        ws="none",
        loop="asyncio",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=ACCEPTS_MAX,
        timeout_keep_alive=math.ceil(IDLE_S),
        h11_max_incomplete_event_size=REQUEST_BYTES_MAX,
    )
    server = _Server(config)

    def run() -> None:
        try:
            server.run(sockets=[listener])
        finally:
            # A thread that ends would leave a port that nobody answers; a new life mends that.
            logs.get_logger().exception("http_ended")
            os._exit(1)

    threading.Thread(target=run, name="http", daemon=True).start()


def _listener(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    family, kind, proto, _, where = found[0]
    listener = socket.socket(family, kind | socket.SOCK_CLOEXEC, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


class _Server(uvicorn.Server):
    """The library has one number for the kernel's queue and for what is accepted at a time."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)


class _Bounded(H11Protocol):
    """A connection that ends, and that gives way."""

    _end: asyncio.TimerHandle | None = None
    _used = 0.0  # when it was opened, or answered last
    _idle = False  # it was answered, and nothing of a next request has come
    _deaf = False  # it sent what is no HTTP: nothing more of it is looked at
    _half_closed = False  # the client sends nothing more

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._used = self.loop.time()
        self._ends_in(REQUEST_S)
        if len(self.connections) > CONNECTIONS_MAX:
            self._make_room()

    def _make_room(self) -> None:
        others = [c for c in self.connections if isinstance(c, _Bounded) and c is not self]
        oldest = min(others, key=lambda connection: connection._used)
        self.connections.discard(oldest)
        oldest.transport.abort()
        logs.get_logger().warning(
            "http_connection_shed",
            limit=CONNECTIONS_MAX,
            client=str(oldest.client),
            repeats="http_connection_shed",
        )

    def _ends_in(self, seconds: float) -> None:
        if self._end is not None:
            self._end.cancel()
        self._end = self.loop.call_later(seconds, self.transport.abort)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def send_400_response(self, msg: str) -> None:
        """Answer, and hear the client out unheeded: to close now would be to reset the connection,
        and an answer that was not read yet would be lost with it."""
        self._deaf = True
        if self.cycle is not None:
            self.cycle.disconnected = True
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()  # what is wrong is the rest of a request that was answered
            return
        close = [("connection", "close"), ("content-type", "text/plain; charset=utf-8")]
        answer = (
            h11.Response(status_code=400, headers=close, reason=b"Bad Request"),
            h11.Data(data=msg.encode()),
            h11.EndOfMessage(),
        )
        self.transport.write(b"".join(self.conn.send(part) or b"" for part in answer))
        self.transport.write_eof()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._idle:
            self._idle = False
            self._ends_in(REQUEST_S)
        super().data_received(data)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Who says that it sends nothing more has its answer all the same."""
        self._half_closed = True
        return self._is_answering()

    def on_response_complete(self) -> None:
        self._used, self._idle = self.loop.time(), True
        self._ends_in(IDLE_S)
        super().on_response_complete()
        if self._half_closed and not self._is_answering():
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._end is not None:
            self._end.cancel()
        super().connection_lost(exc)


class _Rendered:
    """The newest text of each kind."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Report | None, float, bytes]] = {}

    def get(self, kind: str, report: Report | None, write: Callable[[int], bytes]) -> bytes:
        """What was written of this very report, or what `write` makes of it now."""
        now = time.monotonic()
        kept = self._kept.get(kind)
        if kept is None or kept[0] is not report or now - kept[1] >= RENDERED_S:
            kept = self._kept[kind] = (report, now, write(time.monotonic_ns()))
        return kept[2]


def _app(snapshot: Callable[[], Report | None]) -> Starlette:
    rendered = _Rendered()

    async def health(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def ready(request: Request) -> Response:
        body = metrics.readiness(snapshot(), time.monotonic_ns())
        return JSONResponse(body, 200 if body["ready"] else 503)

    async def exposition(request: Request) -> Response:
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        report = snapshot()
        body = rendered.get(kind, report, lambda now: metrics.render(report, now, encode))
        return Response(body, headers={"content-type": kind})

    async def status(request: Request) -> Response:
        report = snapshot()
        body = rendered.get(
            "status", report, lambda now: json.dumps(metrics.status(report, now)).encode()
        )
        return Response(body, 200 if report else 503, media_type="application/json")

    routes: list[tuple[str, Callable[[Request], Any]]] = [
        ("/healthz", health),
        ("/health", health),
        ("/readyz", ready),
        ("/metrics", exposition),
        ("/v1/status", status),
    ]
    return Starlette(routes=[Route(path, call, methods=["GET"]) for path, call in routes])
