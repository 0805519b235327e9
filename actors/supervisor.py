"""The supervisor: spawns, watches, restarts.  frontdesk.py is its half that engines talk to.

A pure actor like the others: processes are started and killed by jobs, their deaths come as Exited
(their pidfd fired) and signals as Stopping.  Rules:

* Every start is a new incarnation, bumped in the ledger's header before the spawn; a successor is
  spawned only after its predecessor's Exited.
* A dead session is announced (Gone) to everyone who may hold something of it, then replaced by a
  fresh spare.  The death of a `core` child (roster.py) kills all children and starts them again on
  a new pool.
* A child silent for SILENT_NS is killed.  If the supervisor itself wakes late, it was stopped too:
  then all silence clocks start again.
* Drain: sessions first, then the core; whoever is left after DRAIN_NS is killed.
"""

from dataclasses import dataclass

from pegaflow.roster import ROSTER, SPECS
from pegaflow.wire.control import (
    SILENT_NS,
    Beat,
    Bye,
    Counter,
    Drain,
    Gone,
    Hello,
    Inspect,
    OpenSession,
    ProcessRow,
    Refused,
    Report,
    Welcome,
)
from pegaflow.wire.jobs import Done, Exited, Kill, MakePool, NextIncarnation, Spawn, Stopping
from pegaflow.wire.status import Status
from pegaflow.wire.values import ALLOCATOR, CLIENT, INDEX, SESSION, Address

from .actor import MS, Actor, Do, Effect, Note, Reply, Send, Sender, Stop
from .frontdesk import FrontDesk
from .kids import Kid, neighbour, who

TICK_NS = 250 * MS
"""How often silence and back-off are looked at."""

LATE_NS = 1000 * MS
"""Waking so much later than planned means that we were stopped ourselves."""

BACKOFF_NS = (0, 100 * MS, 500 * MS, 2000 * MS, 5000 * MS)
"""Delay before the nth restart in a row: a crash at start must not become a fork bomb."""

CALM_NS = 30_000 * MS
"""A life this long ends a row of failures."""

DRAIN_NS = 2500 * MS
"""Time for a drain; with the kill after it the group is gone within five seconds."""

START_NS = 20_000 * MS
"""Patience with a child that has not said Hello: imports on a loaded machine take seconds."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the supervisor is told by its command line."""

    pool_bytes: int
    extent_bytes: int
    spares: int
    run_dir: str
    version: str


@dataclass(slots=True)
class _Row:
    """How often a child of this name failed in a row, and when it may start again."""

    failures: int = 0
    restarts: int = 0
    not_before: int = 0


class Supervisor(Actor):
    """Owns incarnations, roster and spares."""

    def __init__(self, address: Address, plan: Plan) -> None:
        super().__init__(address)
        self.plan = plan
        self.kids: dict[Address, Kid] = {}  # every life that is not proven dead, in order of birth
        self.rows = {spec.name: _Row() for spec in ROSTER}
        self.pool: Welcome | None = None  # None while a pool is being made
        self.desk = FrontDesk(self.kids, self._kill, self._restaff)
        self.state = "starting"  # starting, up, regrouping, draining, killing
        self.started = 0
        self.next_tick = 0
        self.drain_by = 0
        self._spawning = 0  # incarnations asked for, child not yet spawned
        self._pools = 0
        self.on(Hello, self._on_hello, ALLOCATOR, INDEX, SESSION)
        self.on(Beat, self._on_beat, ALLOCATOR, INDEX, SESSION)
        self.on(Bye, self._on_bye, ALLOCATOR, INDEX, SESSION)
        self.on(OpenSession, self._on_open, CLIENT)
        self.on(Inspect, self._on_inspect, CLIENT)
        self.on(Exited, self._on_exited, address.name)
        self.on(Stopping, self._on_stopping, address.name)

    def start(self, now: int) -> list[Effect]:
        """Make the pool, then the children."""
        self.started = now
        self.next_tick = now + TICK_NS
        return self._make_pool(now)

    def wake_at(self) -> int | None:
        """The next look at silence and back-off."""
        return self.next_tick

    def wake(self, now: int) -> list[Effect]:
        """Kill the silent, start what is due, refuse opens that waited too long."""
        if now - self.next_tick > LATE_NS:
            self.counts["woke_late"] += 1
            for kid in self.kids.values():
                kid.heard = now
        self.next_tick = now + TICK_NS
        effects: list[Effect] = []
        for kid in self.kids.values():
            patience = START_NS if kid.state == "starting" else SILENT_NS
            if now - kid.heard > patience and not kid.killed:
                self.counts["silent_killed"] += 1
                silent = ("silent_ms", (now - kid.heard) // MS)
                effects.append(Note("child_silent", (*who(kid), silent), "warning"))
                effects += self._kill(kid)
        if self.state in ("draining", "killing"):
            return effects + (self._kill_all() if now >= self.drain_by else [])
        self.desk.expire(now)
        return effects + self._staff(now)

    def check(self) -> None:
        """One living process per core name."""
        names = [a.name for a in self.kids if SPECS[a.name].core]
        assert len(names) == len(set(names)), names
        self.desk.check()

    def _make_pool(self, now: int) -> list[Effect]:
        self._pools += 1

        def made(done: Done, now: int) -> list[Effect]:
            if done.status is not Status.OK:
                return [Stop(done.note)]
            pool, ledger = done.note.split("\n")
            size = done.values[0]
            self.pool = Welcome(pool, ledger, size, self.plan.extent_bytes, self.plan.run_dir)
            if self.state in ("draining", "killing"):
                return self._drain_on()
            if self.state == "regrouping":
                self.state = "starting"
            return self._staff(now)

        return [Do(MakePool(self._pools), made)]

    def _staff(self, now: int) -> list[Effect]:
        """Start every child that is missing and may start."""
        if self.pool is None or self.state in ("regrouping", "draining", "killing"):
            return []
        if self._spawning:
            return []
        for spec in ROSTER:
            here = [k for k in self.kids.values() if k.address.name == spec.name]
            idle = [k for k in here if spec.core or k.state in ("starting", "spare")]
            wanted = 1 if spec.core else self.plan.spares + self.desk.waiting()
            if len(idle) < wanted and now >= self.rows[spec.name].not_before:
                return self._spawn(spec.name)
        if self.state == "starting" and self._ready():
            self.state = "up"
        return []

    def _ready(self) -> bool:
        states = {k.address.name: k.state for k in self.kids.values()}
        return states.get(ALLOCATOR) == states.get(INDEX) == "up"

    def _spawn(self, name: str) -> list[Effect]:
        self._spawning += 1

        def numbered(done: Done, now: int) -> list[Effect]:
            address = Address(name, done.values[0])
            self.kids[address] = Kid(address, born=now, heard=now)
            return [Do(Spawn(address), lambda d, n: spawned(address, d, n))]

        def spawned(address: Address, done: Done, now: int) -> list[Effect]:
            self._spawning -= 1
            if done.status is not Status.OK:
                return self._lost(self.kids.pop(address), now)
            kid = self.kids[address]
            kid.pid = done.values[0]
            effects = self._kill(kid) if self.state in ("regrouping", "killing") else []
            return effects + self._staff(now)

        return [Do(NextIncarnation(), numbered)]

    def _on_hello(self, sender: Sender, msg: Hello, now: int) -> list[Effect]:
        kid = self.kids.get(sender.address)
        if kid is None or self.pool is None or kid.endpoint:
            return []  # not ours, or it has said so before
        kid.heard, kid.endpoint, kid.pid = now, msg.endpoint, msg.pid
        kid.state = "up" if SPECS[sender.address.name].core else "spare"
        effects: list[Effect] = [Send(kid.address, self.pool)]
        for other in self.kids.values():
            if not other.endpoint or other is kid:
                continue
            if other.address.name in SPECS[kid.address.name].hears_of:
                effects.append(Send(kid.address, neighbour(other)))
            if kid.address.name in SPECS[other.address.name].hears_of:
                effects.append(Send(other.address, neighbour(kid)))
        if self.state == "draining":
            effects.append(Send(kid.address, Drain()))
        return effects + self._restaff(now)

    def _on_beat(self, sender: Sender, msg: Beat, now: int) -> list[Effect]:
        kid = self.kids.get(sender.address)
        if kid is not None:
            kid.counters = msg.counters
            if kid.state != "draining":  # it said Bye, or was told to: now it has to go
                kid.heard = now
        return []

    def _on_bye(self, sender: Sender, msg: Bye, now: int) -> list[Effect]:
        kid = self.kids.get(sender.address)
        if kid is not None and kid.state != "draining":
            kid.heard, kid.state = now, "draining"
        return []

    def _on_exited(self, sender: Sender, msg: Exited, now: int) -> list[Effect]:
        kid = self.kids.pop(msg.address, None)
        if kid is None:
            return []
        effects: list[Effect] = [
            Send(k.address, Gone(msg.address)) for k in self.kids.values() if k.endpoint
        ]
        if self.state in ("draining", "killing"):
            return effects + self._drain_on()
        level = "info" if kid.state == "draining" and not msg.code else "warning"
        effects.append(Note("child_gone", (*who(kid), ("code", msg.code)), level))
        return effects + self._lost(kid, now)

    def _lost(self, kid: Kid, now: int) -> list[Effect]:
        """A child is gone while we are serving: back off, regroup or just replace it."""
        name = kid.address.name
        row = self.rows[name]
        if kid.state != "draining" and not (kid.killed and self.state == "regrouping"):
            row.failures = 1 if now - kid.born > CALM_NS else row.failures + 1
            row.restarts += 1
            row.not_before = now + BACKOFF_NS[min(row.failures, len(BACKOFF_NS)) - 1]
            self.counts[f"{name}_restarts"] += 1
        if SPECS[name].core and self.state != "regrouping":
            self.state = "regrouping"
            self.pool = None
            self.counts["regroups"] += 1
            effects: list[Effect] = [Note("regrouping", who(kid), "error"), *self._kill_all()]
        else:
            effects = []
        if self.state == "regrouping" and not self.kids and not self._spawning:
            return effects + self._make_pool(now)
        return effects + self._restaff(now)

    def _on_open(self, sender: Sender, msg: OpenSession, now: int) -> list[Effect]:
        if self.state in ("draining", "killing"):
            return [Reply(sender, Refused(Status.DRAINING, "the service is stopping"))]
        return self.desk.open(sender, msg) + self._restaff(now)

    def _restaff(self, now: int) -> list[Effect]:
        """Serve the engines that wait, then start what is missing."""
        served = self.desk.serve(now) if self._ready() else []
        return served + self._staff(now)

    def _kill(self, kid: Kid) -> list[Effect]:
        if kid.killed:
            return []
        kid.killed = True
        return [Do(Kill(kid.address), lambda done, now: [])]

    def _kill_all(self) -> list[Effect]:
        return [e for kid in self.kids.values() if kid.pid for e in self._kill(kid)]

    def _on_stopping(self, sender: Sender, msg: Stopping, now: int) -> list[Effect]:
        if self.state in ("draining", "killing"):
            self.state = "killing"
            return self._kill_all() + self._drain_on()
        self.state, self.drain_by = "draining", now + DRAIN_NS
        return self.desk.close() + self._drain_on()

    def _drain_on(self) -> list[Effect]:
        """Sessions first, then the core; then stop."""
        if not self.kids:
            return [Stop()]
        kids = list(self.kids.values())
        wave = [k for k in kids if not SPECS[k.address.name].core] or kids
        effects: list[Effect] = []
        for kid in wave:
            if kid.endpoint and kid.state != "draining":
                kid.state = "draining"
                effects.append(Send(kid.address, Drain()))
        return effects

    def _on_inspect(self, sender: Sender, msg: Inspect, now: int) -> list[Effect]:
        rows = [ProcessRow(self.address, 0, self.state, 0, "", self._counters())]
        for kid in self.kids.values():
            restarts = self.rows[kid.address.name].restarts
            state = "killed" if kid.killed else kid.state
            row = ProcessRow(kid.address, kid.pid, state, restarts, kid.engine, kid.counters)
            rows.append(row)
        pool = self.pool or Welcome("", "", 0, self.plan.extent_bytes, self.plan.run_dir)
        report = Report(
            pool.pool_path,
            pool.ledger_path,
            pool.pool_bytes,
            pool.extent_bytes,
            self.started,
            self.plan.version,
            tuple(rows),
        )
        return [Reply(sender, report)]

    def _counters(self) -> tuple[Counter, ...]:
        return tuple(Counter(k, v) for k, v in sorted(self.counts.items()))
