"""The tier's thread: it talks to the service and moves the bytes, so that the engine's need not.

The engine's thread hands over jobs and collects results through deques, whose ends are atomic; it
never waits for this one, but in `settled`, which vLLM asks for before it gives its memory's chunks
to others. The Client belongs to this thread alone; only its `wake` is called from outside.

    Ask     which of these keys are there; what is found stays on lease until `Forget`
    Fetch   keys into chunks of vLLM's memory: looked up again, for an answer may be old, and
            loaded as long as there is time
    Store   chunks under keys; vLLM keeps them as they are until it has the result
    Look    where some chunks are now, for what routers are told (told.py)
    Renew   go on under another namespace

A job ends within its time. A Fetch ends only when nobody writes into its chunks any more: that is
what LoadDone says, and when this thread fails, it gives the memory up before it reports anything.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pegaflow.client import Client, LoadDone, LookupDone, SaveDone
from pegaflow.wire.layout import Layout
from pegaflow.wire.status import Status
from pegaflow.wire.values import LIST_MAX

from .. import compat
from ..cores import step_aside
from ..mover import ALONE_S, IDLE_S, LET_GO_S, SAVE_TIMEOUT_S
from .told import Look
from .verdicts import Ask


@dataclass(frozen=True, slots=True)
class Run:
    """Keys of one KV cache group, in the order of the prompt, and the chunk of each."""

    keys: Sequence[bytes]
    chunks: Sequence[int]
    parent: bytes = b""  # the key before the first, if it is known


@dataclass(slots=True, eq=False)
class Fetch:
    """A promotion: from the pool to vLLM's memory."""

    number: int  # vLLM's
    request: str
    runs: Sequence[Run]
    until_s: float  # of time.monotonic
    begun_s: float = 0.0
    left: int = 0  # operations that have not ended
    loaded: set[bytes] = field(default_factory=set)  # keys whose chunks are filled


@dataclass(slots=True, eq=False)
class Store:
    """A cascade: from vLLM's memory to the pool."""

    number: int  # vLLM's
    runs: Sequence[Run]
    dropped: bool = False  # vLLM waits for its end (set by the engine's thread, once)
    tickets: set[int] = field(default_factory=set)  # of its saves that have not ended
    begun_s: float = 0.0
    left: int = 0
    there: int = 0  # keys that are in the pool now
    saved: int = 0  # those that were not there before


@dataclass(frozen=True, slots=True)
class Forget:
    """Nobody needs the leases of these questions any more."""

    asks: Sequence[Ask]


@dataclass(frozen=True, slots=True)
class Renew:
    """Go on as another tenant of the service."""

    make: Callable[[], Client]


Job = Ask | Fetch | Store | Look | Forget | Renew
Result = Ask | Fetch | Store | Look


@dataclass(slots=True)
class Carrier:
    """See the module. What has no underscore is for the engine's thread."""

    make: Callable[[], Client]
    layout: Layout
    memory: Any  # vLLM's host memory, as one array of bytes
    attached: bool = False  # a session serves us
    dead: bool = False  # the thread has ended; all that may end has its result
    released: bool = False  # nobody of the service touches the memory any more
    done: deque[Result] = field(default_factory=deque)
    news: threading.Event = field(default_factory=threading.Event)  # something came to `done`
    _jobs: deque[Job] = field(default_factory=deque)  # the engine's thread appends
    _open: dict[int, Callable[[Any], None]] = field(default_factory=dict)  # by ticket: what follows
    _running: dict[Result, None] = field(default_factory=dict)  # begun, in that order
    _client: Client | None = None  # the thread's; others only wake it, under the gate
    _gate: threading.Lock = field(default_factory=threading.Lock)  # held for a wake, never longer
    _stopping: bool = False
    _dropping: bool = False  # there are dropped jobs (set by the engine's thread)
    _was: str = ""  # the state last logged
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="pegaflow-tier", daemon=True)
        self._thread.start()

    def submit(self, *jobs: Job) -> None:
        """Hand jobs over; returns at once."""
        self._jobs.extend(jobs)
        self._wake()
        if self.dead:  # whoever reads `done` bears to find a result twice
            self.done.extend(job for job in jobs if isinstance(job, Result))
            self.news.set()

    def drop(self, jobs: Sequence[Store]) -> None:
        """End these at once; nothing that is not in the pool yet will be."""
        for job in jobs:
            job.dropped = True
        self._dropping = True
        self._wake()

    def stop(self, patience_s: float) -> bool:
        """End the thread; whether, so soon, nobody touches the memory any more."""
        self._stopping = True
        self._wake()
        if self._thread is not None:
            self._thread.join(patience_s)
        return self.released

    def _wake(self) -> None:
        with self._gate:
            if self._client is not None:
                self._client.wake()

    # the thread

    def _run(self) -> None:
        step_aside()
        try:
            self._use(self._connect())
            while self._client is not None and not self._stopping:
                self._turn(self._client)
        except Exception as error:
            compat.logger().error("pegaflow: tier: off, the engine goes on: %r", error)
        finally:
            self._end()

    def _end(self) -> None:
        self.attached = False
        try:
            while self._client is not None and not self._client.unregister(LET_GO_S):
                continue
            self.released = True
            self._use(None)
        except Exception as error:
            compat.logger().error("pegaflow: tier: its memory was not given up: %r", error)
        finally:
            self.dead = True
            self._drop_all()

    def _drop_all(self) -> None:
        """End what has begun, and what has not; but no load into memory that somebody may still
        write to."""
        self._open.clear()
        for running in list(self._running):
            if self.released or not isinstance(running, Fetch):
                self._over(running)
        while self._jobs:
            job = self._jobs.popleft()
            if isinstance(job, Result):
                self._over(job)

    def _use(self, client: Client | None) -> None:
        """Replace the client. The gate keeps a wake from reaching one that is closed."""
        with self._gate:
            old, self._client = self._client, client
        if old is not None:
            old.close()

    def _connect(self) -> Client:
        client = self.make()
        client.register(self.layout, [self.memory])
        return client

    def _turn(self, client: Client) -> None:
        self.attached = client.attached
        self._report(client)
        while self._jobs and self._client is client:
            self._begin(client, self._jobs.popleft())
        if self._client is not client:
            return
        if self._dropping:
            self._drop_saves(client)
        for done in client.poll(IDLE_S if client.attached else ALONE_S):
            self._open.pop(done.ticket)(done)

    def _begin(self, client: Client, job: Job) -> None:
        if isinstance(job, Forget):
            for ask in job.asks:
                self._release(client, ask)
        elif isinstance(job, Renew):
            self._open.clear()
            while self._running:  # only questions: vLLM has waited for all others
                self._over(next(iter(self._running)))
            self.make = job.make
            self._use(self._connect())
        else:
            self._running[job] = None
            if isinstance(job, Ask):
                self._seek(client, _Walk(job, job.keys, (), job.scattered))
            elif isinstance(job, Fetch):
                self._fetch(client, job)
            elif isinstance(job, Store):
                self._store(client, job)
            else:
                job.seen = client.see([block.key for block in job.blocks])
                self._over(job)

    def _over(self, job: Result) -> None:
        self._running.pop(job, None)
        self.done.append(job)
        self.news.set()

    def _release(self, client: Client, ask: Ask) -> None:
        while ask.leases:
            client.release(ask.leases.pop())

    # lookups: one after the other over the keys of a walk

    def _seek(self, client: Client, walk: "_Walk") -> None:
        job = walk.job
        left_s = job.until_s - time.monotonic()
        given_up = isinstance(job, Ask) and job.over
        if walk.at < len(walk.keys) and left_s > 0 and client.attached and not given_up:
            part = walk.keys[walk.at : walk.at + LIST_MAX]
            ticket = client.start_lookup(part, timeout=left_s)
            self._open[ticket] = partial(self._sought, client, walk, len(part))
        elif isinstance(job, Ask):
            if given_up:
                self._release(client, job)
            self._over(job)
        else:
            self._less(job)

    def _sought(self, client: Client, walk: "_Walk", asked: int, done: LookupDone) -> None:
        job, first, last = walk.job, walk.at, walk.at + done.blocks
        found = walk.keys[first:last] if done.lease is not None else ()
        if done.lease is not None and isinstance(job, Ask):
            job.found.update(found)
            job.leases.append(done.lease)
        elif done.lease is not None and isinstance(job, Fetch):
            left_s = max(job.until_s - time.monotonic(), 0.0)
            chunks = walk.chunks[first:last]
            ticket = client.start_load(done.lease, chunks, timeout=left_s)
            job.left += 1
            self._open[ticket] = partial(self._loaded, job, found, chunks)
        walk.at = last
        if done.blocks < asked:
            goes_on = walk.scattered and done.status is Status.OK
            walk.at = last + 1 if goes_on else len(walk.keys)
        self._seek(client, walk)

    def _fetch(self, client: Client, job: Fetch) -> None:
        job.begun_s, job.left = time.monotonic(), len(job.runs)
        for run in job.runs:
            self._seek(client, _Walk(job, run.keys, run.chunks, scattered=True))

    def _loaded(
        self, job: Fetch, keys: Sequence[bytes], chunks: Sequence[int], done: LoadDone
    ) -> None:
        bad = set(done.failed)
        if done.status is not Status.OK and not bad:
            bad = set(chunks)
        job.loaded.update(key for key, chunk in zip(keys, chunks, strict=True) if chunk not in bad)
        self._less(job)

    def _store(self, client: Client, job: Store) -> None:
        job.begun_s, job.left = time.monotonic(), 1
        for run in job.runs:
            for at in range(0, len(run.keys), LIST_MAX):
                if job.dropped or not client.attached:
                    break
                ticket = client.start_save(
                    run.keys[at : at + LIST_MAX],
                    run.chunks[at : at + LIST_MAX],
                    timeout=SAVE_TIMEOUT_S,
                    parent=run.keys[at - 1] if at else run.parent,
                    valid=lambda: not job.dropped,
                )
                job.left += 1
                job.tickets.add(ticket)
                self._open[ticket] = partial(self._saved, job)
        self._less(job)

    def _drop_saves(self, client: Client) -> None:
        self._dropping = False
        for job in self._running:
            for ticket in job.tickets if isinstance(job, Store) and job.dropped else ():
                client.drop_save(ticket)

    def _saved(self, job: Store, done: SaveDone) -> None:
        job.tickets.discard(done.ticket)
        job.there += done.saved + done.known
        job.saved += done.saved
        self._less(job)

    def _less(self, job: Fetch | Store) -> None:
        job.left -= 1
        if not job.left:
            self._over(job)

    def _report(self, client: Client) -> None:
        """One line for each change of the connection."""
        now = client.refusal or "not attached"
        if client.attached:
            loads, saves, why = client.ways
            now = f"attached (loads {loads}, saves {saves}{why and '; '}{why})"
        if now != self._was:
            if client.attached and client.advice:
                compat.logger().warning("pegaflow: tier: %s", client.advice)
            level = "info" if client.attached or not self._was else "warning"
            getattr(compat.logger(), level)("pegaflow: tier: %s", now)
            self._was = now


@dataclass(slots=True)
class _Walk:
    """Keys that are looked up from the first to the last."""

    job: Ask | Fetch
    keys: Sequence[bytes]
    chunks: Sequence[int]
    scattered: bool  # on beyond a key that is not there
    at: int = 0
