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
- When this thread ends, for whatever reason, the client gives the memory up and is closed, and
  `dead` is set. The worker then reports everything open by itself.

A load or save is one of several where the engine has several ranks: each has its own Mover, and
the session publishes a block when all of them have saved their part under the same order. A rank
that will not save an order says so (`Skip`), so that the others' parts are given up at once.

After a `Reset` jobs wait until the loads under way have ended. Then a new client joins the epoch's
session, and what is to be saved waits until it has, for JOIN_S at most.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pegaflow.client import Client, LoadDone, SaveDone
from pegaflow.connectors.common.requests import LoadOrder, SaveOrder
from pegaflow.wire.layout import Layout
from pegaflow.wire.status import Status
from pegaflow.wire.units import Seconds

from . import compat
from .cores import step_aside
from .settings import Engine

LOAD_TIMEOUT_S: Seconds = 10.0
"""The largest prompts are a few GB: a second on the slowest way. Beyond it, computing is faster."""

SAVE_TIMEOUT_S: Seconds = 10.0
"""Enough for thousands of blocks in the queue."""

LET_GO_S: Seconds = 4.0
"""The session answers when no copy of its runs, within milliseconds; one that does not answer is
killed after a second."""

LOST_EVERY_S: Seconds = 60.0
"""One line on blocks that were not saved in this time: a full pool is no reason to fill the log."""

JOIN_S: Seconds = 5.0
"""The scheduler opens the session of a new epoch within milliseconds of hearing of it, and the old
one ends first; blocks wait no longer than a save may take."""

JOIN_LOOK_S: Seconds = 0.02
"""How often is looked whether the client has joined; only in those milliseconds."""

IDLE_S: Seconds = 60.0
"""Longest wait of a poll while a session serves us: jobs end it by `wake`, and so does a change of
the connection, so an idle engine is not disturbed."""

ALONE_S: Seconds = 1.0
"""And while none does: the reason is said within this time."""


@dataclass(slots=True, eq=False)
class Load:
    """One load; `failed` is filled in when it is done."""

    order: LoadOrder
    until: Seconds  # of time.monotonic: its deadline, as the engine's thread counts
    spoiled: bool = False  # the cache was reset meanwhile (the engine's thread): no use any more
    failed: tuple[int, ...] = ()


@dataclass(slots=True, eq=False)
class Save:
    """One save; done when it is reported, or at once when it is dropped."""

    order: SaveOrder
    dropped: bool = False  # the engine has taken the blocks back (set by its thread, once)


@dataclass(frozen=True, slots=True)
class Skip:
    """This rank does not save an order: no rank's part of it is published."""

    order: int


@dataclass(frozen=True, slots=True)
class Reset:
    """Go on in another epoch, with the memory under another name."""

    epoch: int
    layout: Layout


Job = Load | Save | Skip | Reset


@dataclass(slots=True)
class Mover:
    """See the module. `submit`, `done`, `dead`, `stop` are for the engine's thread."""

    engine: Engine
    layout: Layout
    buffers: Sequence[Any]
    make_client: Callable[..., Client]
    epoch: int = 0  # whose namespace is used; the thread's after the start
    done: deque[Load | Save] = field(default_factory=deque)  # results; the engine's thread pops
    dead: bool = False  # the thread has ended; nothing more will come
    released: bool = False  # nobody touches the KV memory any more
    _jobs: deque[Job] = field(default_factory=deque)  # the engine's thread appends
    _open: dict[int, Load | Save] = field(default_factory=dict)  # by ticket
    _reset: Reset | None = None  # waits for the open loads
    _joining: float = float("-inf")  # until then, jobs wait for the client to be attached
    _client: Client | None = None  # the thread's; others only wake it, under the gate
    _gate: threading.Lock = field(default_factory=threading.Lock)  # held for a wake, never longer
    _stopping: bool = False
    _was: str = ""  # the state last logged
    _lost: int = 0  # blocks that were not saved, not yet logged
    _told: float = float("-inf")  # when it was last logged
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="pegaflow-mover", daemon=True)
        self._thread.start()

    def submit(self, *jobs: Job) -> None:
        """Hand jobs over; returns at once."""
        self._jobs.extend(jobs)
        self._wake()

    def stop(self, patience: float) -> bool:
        """End the thread; whether, so soon, nobody touches the KV memory any more."""
        self._stopping = True
        self._wake()
        if self._thread is not None and patience > 0:
            self._thread.join(patience)
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
        finally:
            try:
                self.released = self._client is None or self._client.unregister(LET_GO_S)
            finally:
                self._use(None)
                self.dead = True

    def _use(self, client: Client | None) -> None:
        """Replace the client. The gate keeps a wake from reaching one that is closed."""
        with self._gate:
            old, self._client = self._client, client
        if old is not None:
            old.close()

    def _connect(self) -> Client:
        engine = self.engine
        client = self.make_client(
            engine.name,
            engine.space.base,
            probe=engine.space.probe,
            world=engine.world,
            generation=engine.generation(self.epoch),
            endpoint=engine.settings.endpoint,
            curve=engine.settings.curve,
            owner=engine.settings.owner,
            opens=False,
            way=engine.settings.way,
        )
        client.register(self.layout, self.buffers, rank=engine.rank)
        return client

    def _turn(self, client: Client) -> None:
        joining = not client.attached and time.monotonic() < self._joining
        while self._jobs and self._reset is None and not joining:
            self._begin(client, self._jobs.popleft())
        for done in client.poll(self._patience(client, joining)):
            job = self._open.pop(done.ticket)
            if isinstance(done, LoadDone):
                assert isinstance(job, Load)
                self._loaded(job, done)
            else:
                assert isinstance(job, Save) and isinstance(done, SaveDone)
                self._saved(job, done)
        if self._reset is not None and not self._loading:
            self._switch(self._reset)
        if self._client is not None:
            self._report(self._client)

    @property
    def _loading(self) -> bool:
        return any(isinstance(job, Load) for job in self._open.values())

    def _patience(self, client: Client, joining: bool) -> float:
        """How long nothing need be looked at, if nothing ends."""
        if self._reset is not None and not self._loading:
            return 0.0
        if joining:
            return JOIN_LOOK_S
        return IDLE_S if client.attached else ALONE_S

    def _begin(self, client: Client, job: Job) -> None:
        if isinstance(job, Reset):
            self._reset = job
        elif isinstance(job, Load):
            order = job.order
            ticket = client.start_load(
                order.lease, order.blocks, first=order.first, timeout=LOAD_TIMEOUT_S
            )
            self._open[ticket] = job
        elif isinstance(job, Skip):
            client.skip_save(job.order)
        elif job.dropped:
            client.skip_save(job.order.order)
            self.done.append(job)
        else:
            saved = job.order
            ticket = client.start_save(
                saved.keys,
                saved.blocks,
                timeout=SAVE_TIMEOUT_S,
                parent=saved.parent,
                order=saved.order,
                commits=True,
                valid=lambda: not job.dropped,
            )
            self._open[ticket] = job

    def _loaded(self, load: Load, done: LoadDone) -> None:
        bad = done.status is not Status.OK
        load.failed = done.failed
        if bad and not load.failed:
            load.failed = load.order.blocks
        if bad:
            compat.logger().warning(
                "pegaflow: a load of %d blocks failed (%s); they are computed instead",
                len(load.failed),
                done.status.words,
            )
        self.done.append(load)

    def _saved(self, save: Save, done: SaveDone) -> None:
        missing = len(save.order.keys) - done.saved - done.known
        if missing and done.status is not Status.DROPPED:  # nobody has given them up
            self._lost += missing
        if self._lost and time.monotonic() - self._told >= LOST_EVERY_S:
            compat.logger().warning(
                "pegaflow: rank %d: %d blocks were not saved (%s)",
                self.engine.rank,
                self._lost,
                done.status.words,
            )
            self._lost, self._told = 0, time.monotonic()
        self.done.append(save)

    def _switch(self, reset: Reset) -> None:
        """Only saves are open, and all are dropped: the engine need not hear of them later."""
        self.done.extend(self._open.values())
        self._open.clear()
        self.epoch, self.layout = reset.epoch, reset.layout
        self._use(self._connect())
        self._reset, self._joining = None, time.monotonic() + JOIN_S

    def _report(self, client: Client) -> None:
        """One line for each change of the connection."""
        now = client.refusal or "not attached"
        if client.attached:
            loads, saves, why = client.ways
            now = f"attached (loads {loads}, saves {saves}{why and '; '}{why})"
        if now != self._was:
            if client.attached and client.advice:
                compat.logger().warning("pegaflow: %s", client.advice)
            level = "info" if client.attached or not self._was else "warning"
            getattr(compat.logger(), level)("pegaflow: rank %d %s", self.engine.rank, now)
            self._was = now
