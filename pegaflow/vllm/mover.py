"""The worker's thread that talks to the service and moves the bytes, so that the engine's need not.

The engine's thread hands over jobs and later collects results, both through deques, whose ends are
atomic: neither thread ever waits for the other, and no lock is held while bytes are copied. The
Client belongs to this thread alone; it is built in it, and only its `wake` is called from outside.

Three things keep the engine safe from a thread it cannot wait for:

- A save carries `dropped`, which the engine's thread sets when it takes the blocks back. The client
  asks before a copy and once more after it, so bytes that changed under a copy are never published,
  and the engine may go on at once.
- A load is reported when the client says so: either all of it is there, or its failed blocks will
  not be written any more.
- When this thread ends, for whatever reason, the client is closed and `dead` is set. The worker
  then reports everything open by itself.

After `reset` jobs wait until the loads under way have ended; those are reported failed, for they
bring KV of other weights. Then a new client with the new namespace takes over.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pegaflow.client import Client, LoadDone, SaveDone
from pegaflow.vllm import compat
from pegaflow.vllm.requests import LoadOrder, SaveOrder
from pegaflow.vllm.settings import Engine
from pegaflow.wire.layout import Layout
from pegaflow.wire.status import Status

LOAD_TIMEOUT_S = 10.0
"""The largest prompts are a few GB: a second on the slowest way. Beyond it, computing is faster."""

SAVE_TIMEOUT_S = 10.0
"""A finished request's blocks are held no longer; enough for thousands of blocks in the queue."""

IDLE_S = 1.0
"""Longest wait of a poll: jobs end it by `wake`, so this only bounds a shutdown that missed it."""


@dataclass(slots=True, eq=False)
class Load:
    """One load; `failed` is filled in when it is done."""

    order: LoadOrder
    spoiled: bool = False  # the cache was reset meanwhile: what arrives must not be used
    failed: tuple[int, ...] = ()


@dataclass(slots=True, eq=False)
class Save:
    """One save; done when it is reported, or at once when it is dropped."""

    order: SaveOrder
    dropped: bool = False  # the engine has taken the blocks back (set by its thread, once)


@dataclass(frozen=True, slots=True)
class Reset:
    """Go on under another epoch's namespace."""

    epoch: int


@dataclass(slots=True)
class Mover:
    """See the module. `submit`, `done`, `dead`, `stop` are for the engine's thread."""

    engine: Engine
    layout: Layout
    buffers: Sequence[Any]
    make_client: Callable[..., Client]
    done: deque[Load | Save] = field(default_factory=deque)  # results; the engine's thread pops
    dead: bool = False  # the thread has ended; nothing more will come
    _jobs: deque[Load | Save | Reset] = field(default_factory=deque)  # the engine's thread appends
    _open: dict[int, Load | Save] = field(default_factory=dict)  # by ticket
    _reset: Reset | None = None  # waits for the open loads
    _client: Client | None = None  # the thread's; others only wake it, under the gate
    _gate: threading.Lock = field(default_factory=threading.Lock)  # held for a wake, never longer
    _stopping: bool = False
    _was: str = ""  # the state last logged
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="pegaflow-mover", daemon=True)
        self._thread.start()

    def submit(self, *jobs: Load | Save | Reset) -> None:
        """Hand jobs over; returns at once."""
        self._jobs.extend(jobs)
        self._wake()

    def stop(self, patience: float) -> None:
        """End the thread; waits a little for its farewell to the service."""
        self._stopping = True
        self._wake()
        if self._thread is not None:
            self._thread.join(patience)

    def _wake(self) -> None:
        with self._gate:
            if self._client is not None:
                self._client.wake()

    # the thread

    def _run(self) -> None:
        try:
            self._use(self._connect(0))
            while self._client is not None and not self._stopping:
                self._turn(self._client)
        finally:
            self._use(None)
            self.dead = True

    def _use(self, client: Client | None) -> None:
        """Replace the client. The gate keeps a wake from reaching one that is closed."""
        with self._gate:
            old, self._client = self._client, client
        if old is not None:
            old.close()

    def _connect(self, epoch: int) -> Client:
        engine = self.engine
        namespace, probe = engine.shared(epoch)
        client = self.make_client(
            engine.name,
            namespace,
            probe=probe,
            world=engine.world,
            generation=engine.generation(epoch),
            endpoint=engine.settings.endpoint,
            curve=engine.settings.curve,
        )
        client.register(self.layout, self.buffers, rank=engine.rank)
        return client

    def _turn(self, client: Client) -> None:
        while self._jobs and self._reset is None:
            self._begin(client, self._jobs.popleft())
        for done in client.poll(IDLE_S):
            job = self._open.pop(done.ticket)
            if isinstance(done, LoadDone):
                assert isinstance(job, Load)
                self._loaded(job, done)
            else:
                assert isinstance(job, Save) and isinstance(done, SaveDone)
                self.done.append(job)
        if self._reset is not None and not any(isinstance(j, Load) for j in self._open.values()):
            self._switch(self._reset)
        if self._client is not None:
            self._report(self._client)

    def _begin(self, client: Client, job: Load | Save | Reset) -> None:
        if isinstance(job, Reset):
            self._reset = job
            for other in self._open.values():
                if isinstance(other, Load):
                    other.spoiled = True
                else:
                    other.dropped = True
        elif isinstance(job, Load):
            order = job.order
            ticket = client.start_load(
                order.lease, order.blocks, first=order.first, timeout=LOAD_TIMEOUT_S
            )
            self._open[ticket] = job
        elif job.dropped:
            self.done.append(job)
        else:
            saved = job.order
            ticket = client.start_save(
                saved.keys,
                saved.blocks,
                timeout=SAVE_TIMEOUT_S,
                parent=saved.parent,
                valid=lambda: not job.dropped,
            )
            self._open[ticket] = job

    def _loaded(self, load: Load, done: LoadDone) -> None:
        bad = done.status is not Status.OK
        load.failed = load.order.blocks if load.spoiled else done.failed
        if bad and not load.failed:
            load.failed = load.order.blocks
        if bad:
            compat.logger().warning(
                "pegaflow: a load of %d blocks failed (%s); they are computed instead",
                len(load.failed),
                done.status.words,
            )
        self.done.append(load)

    def _switch(self, reset: Reset) -> None:
        """Only saves are open, and all are dropped: the engine need not hear of them later."""
        self.done.extend(self._open.values())
        self._open.clear()
        self._use(self._connect(reset.epoch))
        self._reset = None

    def _report(self, client: Client) -> None:
        """One line for each change of the connection."""
        now = "attached" if client.attached else client.refusal or "not attached"
        if now != self._was:
            if client.attached and client.advice:
                compat.logger().warning("pegaflow: %s", client.advice)
            level = "info" if client.attached or not self._was else "warning"
            getattr(compat.logger(), level)("pegaflow: rank %d %s", self.engine.rank, now)
            self._was = now
