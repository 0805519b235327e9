"""HTTP: the gateway's shell.  One thread answers, from one immutable snapshot.

The loop's thread swaps the snapshot in (`Publish`), the HTTP thread only reads it, so neither ever
waits for the other, and what a client does ends in this process.  That is bounded too: so many
connections, so large a request, and so long for one request and its answer, after which the
connection is cut (the library's own timeout begins only after the first answer).

    /healthz, /health   200 while this process lives
    /readyz             200, or 503 with the reasons, as JSON
    /metrics            Prometheus text, or OpenMetrics for whoever accepts it
    /v1/status          the newest Report as JSON, with its age
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from pegaflow import logs, metrics
from pegaflow.actors.loop import Loop
from pegaflow.actors.workers import Workers
from pegaflow.wire.control import Report
from pegaflow.wire.jobs import Done, Listen, Publish
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status

CONNECTIONS_MAX = 64
"""Connections at once: a few scrapers and people; a new one above that is closed at once."""

EXCHANGE_S = 30.0
"""Time for one request and its answer, waiting for the request included: twice a scrape's usual
interval, so that a scraper may keep its connection."""

REQUEST_BYTES_MAX = 16 << 10
"""Largest request line with headers; a body is never read."""


class HttpDevice:
    """The gateway's jobs: listen, publish."""

    def __init__(self) -> None:
        self.snapshot: Report | None = None  # replaced as a whole, never changed
        self._workers = Workers()

    def attach(self, loop: Loop) -> None:
        """Deliver completions into this loop."""

        def collect() -> None:
            for number, done in self._workers.collect():
                loop.complete(number, done)

        loop.watch(self._workers.fd, collect)

    def work(self, number: int, job: Message) -> Done | None:
        """Publish at once; listen on the worker, since a name may have to be resolved."""
        if isinstance(job, Publish):
            self.snapshot = job.report
            return Done(Status.OK)
        assert isinstance(job, Listen)
        self._workers.put(number, lambda: self._listen(job))
        return None

    def _listen(self, job: Listen) -> Done:
        try:
            listener = _listener(job.address)
        except OSError as err:
            return Done(Status.BUSY, err.strerror or str(err))
        address = listener.getsockname()
        serve(listener, lambda: self.snapshot)
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        return Done(Status.OK, f"{host}:{address[1]}", (address[1],))

    def close(self) -> None:
        """Nothing: the thread and its socket end with the process."""


def serve(listener: socket.socket, snapshot: Callable[[], Report | None]) -> None:
    """Answer on this socket, in a thread of its own, for as long as the process lives."""
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
        timeout_keep_alive=int(EXCHANGE_S),
        h11_max_incomplete_event_size=REQUEST_BYTES_MAX,
    )
    server = uvicorn.Server(config)

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
        listener.listen(CONNECTIONS_MAX)
    except OSError:
        listener.close()
        raise
    return listener


class _Bounded(H11Protocol):
    """A connection that ends."""

    _end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS_MAX:
            transport.abort()
            return
        self._end = self.loop.call_later(EXCHANGE_S, transport.abort)

    def on_response_complete(self) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = self.loop.call_later(EXCHANGE_S, self.transport.abort)
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._end is not None:
            self._end.cancel()
        super().connection_lost(exc)


def _app(snapshot: Callable[[], Report | None]) -> Starlette:
    async def health(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def ready(request: Request) -> Response:
        body = metrics.readiness(snapshot(), time.monotonic_ns())
        return JSONResponse(body, 200 if body["ready"] else 503)

    async def exposition(request: Request) -> Response:
        accept = request.headers.get("accept", "")
        body, kind = metrics.render(snapshot(), time.monotonic_ns(), accept)
        return Response(body, headers={"content-type": kind})

    async def status(request: Request) -> Response:
        body: dict[str, Any] = metrics.status(snapshot(), time.monotonic_ns())
        return JSONResponse(body, 200 if body["report"] else 503)

    routes: list[tuple[str, Callable[[Request], Any]]] = [
        ("/healthz", health),
        ("/health", health),
        ("/readyz", ready),
        ("/metrics", exposition),
        ("/v1/status", status),
    ]
    return Starlette(routes=[Route(path, call, methods=["GET"]) for path, call in routes])
