"""The worker's thread that talks to the service and moves the bytes, so that the engine's need not.

The engine's thread hands over jobs and later collects results, both through deques, whose ends are
atomic: neither thread ever waits for the other, and no lock is held while bytes are copied. The
Client belongs to this thread alone; it is built in it, and only its `wake` is called from outside.

Three things keep the engine safe from a thread it cannot wait for:

- A save is not `valid` any more as soon as the engine takes the blocks back. The client asks before
  a copy and once more after it, so bytes that changed under a copy are never published, and the
  engine may go on at once.
- A load is reported when the client says so: either all of it is there, or its failed blocks will
  not be written any more.
- When this thread ends, for whatever reason, the client gives the memory up, however long that
  takes, and is closed. The worker then reports everything open by itself: loads only when the
  memory is `released`, for until then a session that hangs may still write into their blocks.

The saves of a step, one for each of its requests, go to the session *together*: what a save of one
block costs is the conversation about it (Save, BatchCopied, Keep, Seal, Saved: some 1.5 ms of the
session's CPU), and a step in which sixteen requests fill a block each needs but one.  Each stays a
save of its own in all else: it is dropped, skipped, committed and reported by its number, and what
becomes of it costs the others nothing.  But its end is said with the others', so its request's
blocks are held for as long as they take; so no conversation is of more than TOGETHER_BLOCKS, a
request that fills more has its own, and the smallest go first.  Is the session killed, all of
their blocks are not saved; they have one deadline.  All ranks put the same saves together.

A load or save is one of several where the engine has several ranks: each has its own Mover, and
the session publishes a block when all of them have saved their part under the same order, or when
one of those has that hold the same bytes. A rank that will not save an order says so
(`Skip`), so that the others' parts are given up at once.

After a `Reset` jobs wait until the loads under way have ended. Then a new client joins the epoch's
session, and what is to be saved waits until it has, for JOIN_S at most.
"""

import threading
import time
from bisect import bisect
from collections import deque
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from pegaflow.client import Buffers, Chain, Client, LoadDone, SaveDone
from pegaflow.connectors.common.tracked import LoadOrder, SaveOrder
from pegaflow.wire.layout import Layout
from pegaflow.wire.status import Status
from pegaflow.wire.units import Count, Seconds

from . import compat
from .cores import step_aside
from .settings import Engine

LOAD_TIMEOUT_S: Seconds = 10.0
"""The largest prompts are a few GB: a second on the slowest way. Beyond it, computing is faster."""

SAVE_TIMEOUT_S: Seconds = 10.0
"""Enough for thousands of blocks in the queue."""

TOGETHER_BLOCKS: Count = 64
"""Of several requests in one conversation.  64 blocks are copied in a few milliseconds, which is
what those that are over wait for the last; and copying them costs several times what the
conversation does, so more together would save little."""

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


@dataclass(slots=True, eq=False, kw_only=True)
class _Timed:
    """When it was ordered, and how long it took once it is done."""

    since_s: Seconds = field(default_factory=time.monotonic)
    took_s: Seconds = 0.0

    def end(self) -> None:
        """It is done."""
        self.took_s = time.monotonic() - self.since_s


@dataclass(slots=True, eq=False)
class Load(_Timed):
    """One load; `failed` is filled in when it is done."""

    order: LoadOrder
    until_s: Seconds  # of time.monotonic: its deadline, as the engine's thread counts
    spoiled: bool = False  # the cache was reset meanwhile (the engine's thread): no use any more
    failed: tuple[int, ...] = ()


@dataclass(slots=True, eq=False)
class Save(_Timed):
    """One save; done when it is reported, or at once when it is dropped."""

    order: SaveOrder
    taken: Container[int] = ()  # orders whose blocks are somebody else's (set by its thread)
    dropped: bool = False  # the engine has taken the blocks back (set by its thread, once)
    missing: int | None = None  # blocks that were lost; None: nobody has wanted them any more

    @property
    def valid(self) -> bool:
        """Whether the blocks are still the request's."""
        return not self.dropped and self.order.order not in self.taken


@dataclass(frozen=True, slots=True)
class Skip:
    """This rank does not save an order: no rank's part of it is published."""

    order: int


@dataclass(frozen=True, slots=True)
class Reset:
    """Go on in another epoch, with the memory under another name."""

    epoch: int
    layout: Layout


Together = tuple[Save, ...]
"""The saves of a step, and later those of one conversation."""

Job = Load | Together | Skip | Reset


@dataclass(slots=True)
class Mover:
    """See the module. What has no underscore is for the engine's thread."""

    engine: Engine
    layout: Layout
    buffers: Buffers
    make_client: Callable[..., Client]
    epoch: int = 0  # whose namespace is used; the thread's after the start
    done: deque[Load | Save] = field(default_factory=deque)  # results; the engine's thread pops
    stopping: bool = False  # the thread takes no more jobs: it was told to end, or has failed
    released: bool = False  # nobody touches the KV memory any more
    dead: bool = False  # the thread has ended; nothing more will come
    _jobs: deque[Job] = field(default_factory=deque)  # the engine's thread appends
    _open: dict[int, Load | Together] = field(default_factory=dict)  # by ticket
    _reset: Reset | None = None  # waits for the open loads
    _joining_until_s: float = float("-inf")  # until then, jobs wait for the client to be attached
    _client: Client | None = None  # the thread's; others only wake it, under the gate
    _gate: threading.Lock = field(default_factory=threading.Lock)  # held for a wake, never longer
    _was: str = ""  # the state last logged
    _lost: int = 0  # blocks that were not saved, not yet logged
    _told_s: float = float("-inf")  # when it was last logged
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="pegaflow-mover", daemon=True)
        self._thread.start()

    def submit(self, *jobs: Job) -> None:
        """Hand jobs over; returns at once."""
        self._jobs.extend(jobs)
        self._wake()

    def stop(self, patience_s: float) -> bool:
        """End the thread; whether, so soon, nobody touches the KV memory any more."""
        self.stopping = True
        self._wake()
        if self._thread is not None and patience_s > 0:
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
            while self._client is not None and not self.stopping:
                self._turn(self._client)
        finally:
            self._part()

    def _part(self) -> None:
        if not self.stopping:
            compat.logger().error("pegaflow: off: the mover thread has died")
        self.stopping = True
        try:
            while self._client is not None and not self._client.unregister(LET_GO_S):
                continue
            self.released = True
        finally:
            try:
                self._use(None)
            finally:
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
        client.register(self.layout, self.buffers, rank=engine.rank, replicas=engine.replicas)
        return client

    def _turn(self, client: Client) -> None:
        joining = not client.attached and time.monotonic() < self._joining_until_s
        while self._jobs and self._reset is None and not joining:
            self._begin(client, self._jobs.popleft())
        for done in client.poll(self._patience_s(client, joining)):
            job = self._open.pop(done.ticket)
            if isinstance(done, LoadDone):
                assert isinstance(job, Load)
                self._loaded(job, done)
            else:
                assert isinstance(job, tuple) and isinstance(done, SaveDone)
                self._saved(job, done)
        if self._reset is not None and not self._loading:
            self._switch(self._reset)
        if self._client is not None:
            self._report(self._client)

    @property
    def _loading(self) -> bool:
        return any(isinstance(job, Load) for job in self._open.values())

    def _patience_s(self, client: Client, joining: bool) -> float:
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
        else:
            for saves in together(job) if client.gathers else ((save,) for save in job):
                self._save(client, saves)

    def _save(self, client: Client, saves: Together) -> None:
        if not any(save.valid for save in saves):
            for save in saves:
                client.skip_save(save.order.order)
            self.done.extend(saves)
            return
        first, *more = (_chain(save) for save in saves)
        ticket = client.start_save(
            first.keys,
            first.blocks,
            timeout=SAVE_TIMEOUT_S,
            parent=first.parent,
            order=first.order,
            commits=True,
            valid=first.valid,
            more=more,
        )
        self._open[ticket] = saves

    def _loaded(self, load: Load, done: LoadDone) -> None:
        bad = done.status is not Status.OK
        load.end()
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

    def _saved(self, saves: Together, done: SaveDone) -> None:
        for save, lost in zip(saves, missing(saves, done), strict=True):
            save.end()
            if not lost or (save.valid and done.status is not Status.DROPPED):
                save.missing = lost
                self._lost += lost
        if self._lost and time.monotonic() - self._told_s >= LOST_EVERY_S:
            compat.logger().warning(
                "pegaflow: rank %d: %d blocks were not saved (%s)",
                self.engine.rank,
                self._lost,
                done.status.words,
            )
            self._lost, self._told_s = 0, time.monotonic()
        self.done.extend(saves)

    def _switch(self, reset: Reset) -> None:
        """Only saves are open, and all are dropped: the engine need not hear of them later."""
        for saves in self._open.values():
            assert isinstance(saves, tuple)
            self.done.extend(saves)
        self._open.clear()
        self.epoch, self.layout = reset.epoch, reset.layout
        self._use(self._connect())
        self._reset, self._joining_until_s = None, time.monotonic() + JOIN_S

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


def together(saves: Together) -> Iterator[Together]:
    """Which saves of a step are one conversation: the same at every rank."""
    group: list[Save] = []
    room = TOGETHER_BLOCKS
    for save in sorted(saves, key=lambda save: (_width(save), len(save.order.keys))):
        room -= len(save.order.keys)
        if group and (room < 0 or _width(group[0]) != _width(save)):
            yield tuple(group)
            group, room = [], TOGETHER_BLOCKS - len(save.order.keys)
        group.append(save)
    if group:
        yield tuple(group)


def _width(save: Save) -> int:
    """Bytes of its keys: those of a request with an adapter may be longer than the others'."""
    return len(save.order.keys[0])


def _chain(save: Save) -> Chain:
    order = save.order
    return Chain(
        order.keys,
        order.blocks,
        order=order.order,
        parent=order.parent,
        valid=lambda: save.valid,
    )


def missing(saves: Together, done: SaveDone) -> list[int]:
    """How many blocks of each are not in the cache."""
    counts = [len(save.order.keys) for save in saves]
    there = done.saved + done.known
    if len(saves) == 1:
        return [counts[0] - there]
    if not there and not done.lost:
        return counts
    ends, found = list(accumulate(counts)), [0] * len(saves)
    for place in done.lost:
        found[bisect(ends, place)] += 1
    return found
