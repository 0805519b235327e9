"""The supervisor: spawns, watches, restarts.  attach.py is its half that engines talk to.

A pure actor like the others: processes are started and killed by jobs, their deaths come as Exited
(their pidfd fired) and signals as Stopping.  Rules:

* Every start is a new incarnation, bumped in the ledger's header before the spawn; a successor is
  spawned only after its predecessor's Exited.
* A dead child is announced (Gone) to everyone who may hold something of it, then replaced: a
  session by a fresh spare, an index or allocator by one that adopts the pool as it is.  Nobody else
  is taken down.  Engines that come while the core is not complete wait at the desk.
* A child that is silent, and not for want of a core, is killed and never resumed (watchdog.py).  If
  the supervisor itself wakes late, it was stopped too: then all silence clocks start again.
* A child that fails again and again is restarted ever later, then rests (restarts.py).
* Spares that nobody wants any more drain one by one.
* Drain: sessions first, then the flusher, which writes what is left, then the core, then the
  gateway; whoever is left after DRAIN_NS, and the flusher's own time, is killed.  Meanwhile its
  beats count, as those of no other that drains do: it has work to do.
* Every tick it is looked whether others still find the service's files; what cannot be mended is a
  fault, said once and reported for as long as it is there.
* A service manager is told READY once an engine could have a session, and what has changed since;
  and, if it wants that, that we are alive.  Nobody else's state is in that word: a child that hangs
  is our affair, and what the manager does about us ends them all.
"""

import dataclasses
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pegaflow.actors.roster import ROSTER, SPECS
from pegaflow.actors.runtime.contract import MS, Actor, Do, Effect, Note, Reply, Send, Sender, Stop
from pegaflow.core import series
from pegaflow.wire.control import (
    Beat,
    Bye,
    Drain,
    Gone,
    Hello,
    Inspect,
    KindRow,
    OpenSession,
    ProcessRow,
    Refused,
    Remark,
    Report,
    Roll,
    Serving,
    Welcome,
    listed,
)
from pegaflow.wire.jobs import (
    Announce,
    CheckFiles,
    Done,
    Exited,
    Kill,
    NextIncarnation,
    OpenPool,
    Relogging,
    Showing,
    Spawn,
    Stopping,
)
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.values import ALLOCATOR, CLIENT, FLUSHER, GATEWAY, INDEX, SESSION, Address

from .attach import FrontDesk
from .children import Kid, neighbour, who
from .names import Names
from .operator import Operator
from .restarts import FAILURES_MAX, REST_NS, Budgets
from .totals import Tally
from .watchdog import Watchdog

TICK_NS = 250 * MS
"""How often silence and back-off are looked at."""

LATE_NS = 1000 * MS
"""Waking so much later than planned means that we were stopped ourselves."""

DRAIN_NS = 2500 * MS
"""Time for a drain; with the kill after it the group is gone within five seconds."""

DEAD_MAX = 1024
"""Dead sessions that a new index is told of; it lacks those of its predecessor's last seconds."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the supervisor is told by its command line."""

    spares: int
    run_dir: str
    version: str
    http_addr: str = ""  # empty: no gateway
    copy_threads: int = 2  # of each session
    verify: bool = False  # check pages against their checksums on every load
    ssd: bool = False  # there is an SSD tier
    flush_ns: int = 0  # at the end, for blocks that are not in the log yet
    pid: int = 0  # the supervisor's own
    pid_namespace: int = 0  # inode of the one that all our pids are of; 0: unknown
    ping_ns: int = 0  # how often a service manager wants a sign of life; 0: never
    max_pinned: float = 0.0  # part of the pool that one engine's leases may hold; 0: all of it


class Supervisor(Actor):
    """Owns incarnations, roster and spares."""

    def __init__(self, address: Address, plan: Plan) -> None:
        super().__init__(address)
        self.measured: Callable[[], dict[str, int]] = dict  # gauges of our process, by the shell
        self.plan = plan
        self.kids: dict[Address, Kid] = {}  # every life that is not proven dead, in order of birth
        self.budgets = Budgets(tuple(SPECS))
        self.tally = Tally()
        self.pool: Welcome | None = None  # None until there is one
        self.dead: deque[Address] = deque(maxlen=DEAD_MAX)  # holders, the newest last
        self.desk = FrontDesk(self.kids, self.budgets, self._restaff, plan.pid_namespace)
        self.operator = Operator(self.kids)
        self.names = Names(address, plan.run_dir, self.kids, self.counts)
        self.watchdog = Watchdog(self.kids, self.counts, self._kill)
        self.state = "starting"  # starting, up, draining, killing
        self.started = 0
        self.next_tick = 0
        self.next_ping = 0  # when to tell the service manager that we live, if it wants to know
        self.drain_by = 0
        self._spawning = 0  # incarnations asked for, child not yet spawned
        self._ready_said = False  # the service manager knows that we are ready
        self._status_said = ""  # what it was told last
        self.on(Hello, self._on_hello, *SPECS)
        self.on(Beat, self._on_beat, *SPECS)
        self.on(Bye, self._on_bye, *SPECS)
        self.on(OpenSession, self._on_open, CLIENT)
        self.on(Inspect, self._on_inspect, CLIENT, GATEWAY)
        self.on(Exited, self._on_exited, address.name)
        self.on(Stopping, self._on_stopping, address.name)
        self.on(Relogging, self.operator.relog, address.name)
        self.on(Showing, self._on_showing, address.name)

    def start(self, now: int) -> list[Effect]:
        """Open the pool, then start the children."""
        self.started = now
        self.next_tick = self.next_ping = now + TICK_NS
        return [Do(OpenPool(), self._opened)]

    def wake_at(self) -> int | None:
        """The next look at silence and back-off, or the next sign of life."""
        return min(self.next_tick, self.next_ping) if self.plan.ping_ns else self.next_tick

    def wake(self, now: int) -> list[Effect]:
        """Say that we live, and look after the children, whichever is due."""
        effects: list[Effect] = []
        if self.plan.ping_ns and now >= self.next_ping:
            self.next_ping = now + self.plan.ping_ns
            effects.append(Do(Announce("WATCHDOG=1"), lambda done, now: []))
        return effects + self._tick(now) if now >= self.next_tick else effects

    def _tick(self, now: int) -> list[Effect]:
        """Look at the silent, start what is due, forget opens that waited too long."""
        if now - self.next_tick > LATE_NS:
            self.counts["woke_late"] += 1
            self.watchdog.forgive(now)
        self.next_tick = now + TICK_NS
        effects = self.watchdog.look(now)
        if self.state in ("draining", "killing"):
            return effects + (self._kill_all() if now >= self.drain_by else [])
        self.desk.expire(now)
        effects.append(Do(CheckFiles(), self.names.looked))
        return effects + self._thin() + self._staff(now) + self._announce(now)

    def gauges(self) -> dict[str, int]:
        """How many engines wait at the desk."""
        return {"opens_waiting": self.desk.waiting()}

    def check(self) -> None:
        """One living process per name, but for sessions."""
        names = [a.name for a in self.kids if a.name != SESSION]
        assert len(names) == len(set(names)), names
        self.desk.check()

    def _opened(self, done: Done, now: int) -> list[Effect]:
        if done.status is not Status.OK:
            return [Stop(done.note)]
        pool, ledger = done.note.split("\n")
        self.pool = dataclasses.replace(
            self._welcome(pool, ledger, *done.values[:2]),
            pool_file=done.values[2:4],
            ledger_file=done.values[4:6],
        )
        return self._drain_on() if self.state in ("draining", "killing") else self._staff(now)

    def _welcome(self, pool: str = "", ledger: str = "", size: int = 0, extent: int = 0) -> Welcome:
        plan = self.plan
        rest = (plan.run_dir, plan.http_addr, plan.copy_threads, plan.verify, plan.ssd)
        return Welcome(pool, ledger, size, extent, *rest, max_pinned=int(plan.max_pinned * size))

    def _staff(self, now: int) -> list[Effect]:
        """Start every child that is missing and may start."""
        stopping = self.state in ("draining", "killing")
        if self.pool is None or self._spawning or stopping:
            return []
        for spec in ROSTER:
            here = [k for k in self.kids.values() if k.address.name == spec.name]
            if spec.name == SESSION:
                here = [k for k in here if k.state in ("starting", "spare")]
            if len(here) < self._wanted(spec.name):
                if now >= self.budgets.kinds[spec.name].not_before:
                    return self._spawn(spec.name)
        if self.state == "starting" and self._ready():
            self.state = "up"
        return []

    def _thin(self) -> list[Effect]:
        """Let a spare go that was started for an engine which got another one, or gave up."""
        spares = [k for k in self.kids.values() if k.state == "spare" and not k.killed]
        if len(spares) <= self._wanted(SESSION):
            return []
        spares[-1].state = "draining"
        return [Send(spares[-1].address, Drain())]

    def _wanted(self, name: str) -> int:
        """Children of a kind; of sessions, those without an engine."""
        if name == SESSION:
            return self.plan.spares + self.desk.waiting()
        unwanted = {GATEWAY: not self.plan.http_addr, FLUSHER: not self.plan.ssd}
        return 0 if unwanted.get(name) else 1

    def shown(self) -> str:
        """The state for people: recovering while index or allocator is being replaced."""
        return "recovering" if self.state == "up" and not self._ready() else self.state

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
            return self._kill(kid) if self.state == "killing" else self._restaff(now)

        return [Do(NextIncarnation(), numbered)]

    def _on_hello(self, sender: Sender, msg: Hello, now: int) -> list[Effect]:
        kid = self.kids.get(sender.address)
        if kid is None or kid.endpoint:
            return []  # not ours, or it has said so before
        assert self.pool is not None
        kid.heard, kid.endpoint, kid.port, kid.pid = now, msg.endpoint, msg.port, msg.pid
        kid.state = "spare" if kid.address.name == SESSION else "up"
        spec = SPECS[kid.address.name]
        welcome = self.pool if spec.pool else self._welcome()
        effects: list[Effect] = [Send(kid.address, welcome), *self.operator.greet(kid)]
        if spec.core:
            effects.append(Send(kid.address, self._roll()))
        for other in self.kids.values():
            if not other.endpoint or other is kid:
                continue
            if other.address.name in spec.hears_of:
                effects.append(Send(kid.address, neighbour(other)))
            if kid.address.name in SPECS[other.address.name].hears_of:
                effects.append(Send(other.address, neighbour(kid)))
        if self.state == "draining":
            effects.append(Send(kid.address, Drain()))
        return effects + self._restaff(now)

    def _on_beat(self, sender: Sender, msg: Beat, now: int) -> list[Effect]:
        kid = self.kids.get(sender.address)
        if kid is not None:
            kid.counters, kid.gauges, kid.remarks = msg.counters, msg.gauges, msg.remarks
            flushing = self.state == "draining" and kid.address.name == FLUSHER
            if kid.state != "draining" or flushing:
                kid.heard = now  # the others said Bye, or were told to: now they have to go
        return []

    def _on_bye(self, sender: Sender, msg: Bye, now: int) -> list[Effect]:
        kid = self.kids.get(sender.address)
        if kid is not None and kid.state != "draining":
            kid.heard, kid.state = now, "draining"
        return []

    def late(self, sender: Address, msg: Message, now: int) -> list[Effect]:
        """A spare says that it serves after its time: it was starved, or the watchdog has it."""
        kid = self.kids.get(sender)
        served = self.desk.serves(kid) if kid and isinstance(msg, Serving) else []
        return served + self._restaff(now)

    def _on_exited(self, sender: Sender, msg: Exited, now: int) -> list[Effect]:
        kid = self.kids.pop(msg.address, None)
        if kid is None:
            return []
        self.tally.bury(kid)
        if not msg.code:
            kid.state = "draining"  # it ended cleanly; its Bye may come later, or never
        if SPECS[kid.address.name].holds:
            self.dead.append(kid.address)
        effects: list[Effect] = [
            Send(k.address, Gone(msg.address)) for k in self.kids.values() if k.endpoint
        ]
        if self.state in ("draining", "killing"):
            return effects + self._drain_on()
        level = "info" if kid.state == "draining" and not msg.code else "warning"
        effects.append(Note("child_gone", (*who(kid), ("how", msg.how)), level))
        return effects + self._lost(kid, now)

    def _lost(self, kid: Kid, now: int) -> list[Effect]:
        """A child is gone while we are serving: back off, or replace it at once."""
        name = kid.address.name
        effects: list[Effect] = []
        if kid.state != "draining":
            self.counts[f"{name}_restarts"] += 1
            if self.budgets.failed(kid, now):
                failed = (("failures", FAILURES_MAX), ("rests_s", REST_NS // (1000 * MS)))
                effects.append(Note("child_broken", (*who(kid), *failed), "error"))
        return effects + self._restaff(now)

    def _roll(self) -> Roll:
        """Those who may hold something of the pool, and those that are dead."""
        kids = self.kids.values()
        living = tuple(k.address for k in kids if SPECS[k.address.name].holds and k.endpoint)
        return Roll(living, tuple(self.dead))

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

    def _kill_all(self, kids: list[Kid] | None = None) -> list[Effect]:
        some = self.kids.values() if kids is None else kids
        return [e for kid in some if kid.pid for e in self._kill(kid)]

    def _on_stopping(self, sender: Sender, msg: Stopping, now: int) -> list[Effect]:
        effects: list[Effect] = []
        again = self.state in ("draining", "killing")
        if not again:
            self.state, self.drain_by = "draining", now + DRAIN_NS + self.plan.flush_ns
            say = Do(Announce("STOPPING=1\nSTATUS=draining"), lambda done, now: [])
            effects = [*self.desk.close(), say]
        if again or msg.at_once:
            self.state = "killing"
            effects += self._kill_all()
        return effects + self._drain_on()

    def _on_showing(self, sender: Sender, msg: Showing, now: int) -> list[Effect]:
        pool = (("pool", self.pool.pool_path), ("bytes", self.pool.pool_bytes)) if self.pool else ()
        own = {**self.counts, **self.gauges(), **self.measured()}
        facts = (("state", self.shown()), ("children", len(self.kids)), *pool, *own.items())
        return [Note("service_state", facts), *self.operator.show(sender, msg, now)]

    def _drain_on(self) -> list[Effect]:
        """Sessions first, then the flusher, then the core, then the gateway; then stop."""
        if not self.kids:
            return [Stop()]
        kids = list(self.kids.values())
        core = [k for k in kids if SPECS[k.address.name].core]
        sessions = [k for k in kids if k.address.name == SESSION]
        wave = sessions or [k for k in kids if SPECS[k.address.name].holds] or core or kids
        effects: list[Effect] = []
        for kid in wave:
            if kid.endpoint and kid.state != "draining":
                kid.state = "draining"
                effects.append(Send(kid.address, Drain()))
        return effects

    def _announce(self, now: int) -> list[Effect]:
        """Tell the service manager what has changed."""
        states = [k.state for k in self.kids.values() if k.address.name == SESSION]
        spares, engines = states.count("spare"), states.count("serving")
        broken = [n for n, b in self.budgets.kinds.items() if b.state(now) == "broken"]
        status = f"{self.shown()}: {engines} engines, {spares} spare sessions"
        status += f"; broken: {', '.join(broken)}" if broken else ""
        lines = [f"STATUS={status}"]
        if not self._ready_said and self.state == "up" and spares >= min(self.plan.spares, 1):
            self._ready_said = True
            lines.insert(0, "READY=1")
        elif status == self._status_said:
            return []
        self._status_said = status
        return [Do(Announce("\n".join(lines)), lambda done, now: [])]

    def _on_inspect(self, sender: Sender, msg: Inspect, now: int) -> list[Effect]:
        plain = {name: n for name, n in self.counts.items() if series.SEPARATOR not in name}
        own = listed({**plain, **self.gauges(), **self.measured()})
        rows = [ProcessRow(self.address, self.plan.pid, self.shown(), 0, "", own)]
        kinds = [KindRow(self.address.name, "ok", 0, 0, listed(self.counts))]
        for kid in self.kids.values():
            restarts = self.budgets.kinds[kid.address.name].restarts
            state = "killed" if kid.killed else kid.state
            numbers = tuple(c for c in kid.counters if series.SEPARATOR not in c.name) + kid.gauges
            numbers += listed({"engine_seat": kid.seat}) if kid.seat else ()
            rows.append(ProcessRow(kid.address, kid.pid, state, restarts, kid.engine, numbers))
        for name, budget in self.budgets.kinds.items():
            sums = self.tally.sums(name, self.kids.values())
            state, at = budget.state(now), budget.not_before
            kinds.append(KindRow(name, state, at, budget.restarts, sums))
        pool = self.pool or self._welcome()
        report = Report(
            *(pool.pool_path, pool.ledger_path, pool.pool_bytes, pool.extent_bytes),
            self.started,
            self.plan.version,
            tuple(rows),
            self.plan.http_addr,
            now,
            tuple(kinds),
            self.names.faults,
            tuple(Remark(kid.address, text) for kid in self.kids.values() for text in kid.remarks),
        )
        return [Reply(sender, report)]
