"""The client's half of wire/session.py as a plain state machine: no socket, clock, thread or file.

    lost ── OpenSession ──→ SessionAt ──→ joining ── Attach (or Ping) ──→ ready
      ↑                                                                    │
      └── the session's process is dead, or it does not answer a Ping ─────┘

In: calls of the engine, envelopes, the ends of copies, the time.  Out: effects for client.py.  Each
started operation ends exactly once, with a `Done`: by its answer, at its deadline, or when the
session is lost.  An operation that ends by itself while its answer is under way leaves no trace at
the service: a late lease is released, a late Take is answered with Drop.

Copies are done by the client's own thread between two calls of this machine, so when an operation
ends here nothing writes the engine's blocks any more.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from pegaflow.wire.control import OpenSession, Refused, SessionAt
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.layout import Layout
from pegaflow.wire.message import Message
from pegaflow.wire.session import (
    Attach,
    Attached,
    Confirmed,
    Copied,
    Drop,
    Found,
    Keep,
    Leave,
    Load,
    Lookup,
    Pages,
    Ping,
    Pong,
    Release,
    Save,
    Saved,
    Take,
)
from pegaflow.wire.status import Status
from pegaflow.wire.values import NOBODY, SUPERVISOR, Address

from .results import Done, Lease, LoadDone, LookupDone, SaveDone

RETRY_NS = (20_000_000, 50_000_000, 100_000_000, 250_000_000, 1_000_000_000)
"""Delay before the nth OpenSession in a row: at once after a crash, gently while a host is down."""

OPEN_NS = 2_000_000_000
"""Patience with the front desk: a spare is ready or starts in a fraction of a second."""

PING_NS = 1_000_000_000
"""Patience with a session that let a deadline pass; the watchdog kills it a little later."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this client is."""

    address: Address
    engine: str
    generation: bytes
    namespace: bytes
    probe: bytes
    world: int
    pid: int
    started: int


@dataclass(frozen=True, slots=True)
class ToDesk:
    """Send this to the front desk."""

    envelope: Envelope


@dataclass(frozen=True, slots=True)
class ToSession:
    """Send this to the session."""

    envelope: Envelope


@dataclass(frozen=True, slots=True)
class DialSession:
    """Open the link to a session and watch its process."""

    address: Address
    endpoint: str
    pid: int


@dataclass(frozen=True, slots=True)
class HangUp:
    """Close the link to the session."""


@dataclass(frozen=True, slots=True)
class MapFiles:
    """Map the pool (read-only) and the bounce file; tell `mapped`."""

    attached: Attached


@dataclass(frozen=True, slots=True)
class CopyIn:
    """Copy pool offsets into the engine's blocks until the deadline; tell `copied_in`."""

    ticket: int
    blocks: tuple[int, ...]
    offsets: tuple[int, ...]
    deadline: int


@dataclass(frozen=True, slots=True)
class CopyOut:
    """Copy the engine's blocks into bounce slots until the deadline; tell `copied_out`."""

    ticket: int
    batch: int
    blocks: tuple[int, ...]
    slots: tuple[int, ...]
    deadline: int


@dataclass(frozen=True, slots=True)
class Finish:
    """An operation is over."""

    done: Done


Effect = ToDesk | ToSession | DialSession | HangUp | MapFiles | CopyIn | CopyOut | Finish


@dataclass(slots=True)
class _Operation:
    kind: str  # lookup, load, save
    deadline: int
    blocks: tuple[int, ...] = ()  # of the engine
    copy: int = 0  # load: the session's number for it
    valid: Callable[[], bool] = lambda: True  # save: the engine's blocks still hold these keys


@dataclass(slots=True)
class _Question:
    deadline: int
    then: Callable[[Message | None, int], list[Effect]]  # None: no answer


@dataclass(slots=True)
class Machine:
    """One client of one engine."""

    me: Identity
    state: str = "lost"  # lost, opening, joining, ready
    refusal: str = ""  # why the service refused us last
    advice: str = ""  # what the service had to say when it took us
    session: Address = NOBODY
    registered: tuple[int, Layout, tuple[int, ...]] | None = None  # rank, layout, region bytes
    operations: dict[int, _Operation] = field(default_factory=dict)  # without an end yet
    _questions: dict[int, _Question] = field(default_factory=dict)
    _last: int = 0  # newest ticket or question number
    _tries: int = 0  # OpenSessions in a row without success
    _retry_at: int = 0
    _pinging: bool = False

    # the engine's calls

    def register(self, rank: int, layout: Layout, region_bytes: tuple[int, ...]) -> list[Effect]:
        """Remember the memory; it is attached by the next `wake`."""
        self.registered = (rank, layout, region_bytes)
        return self._lose(0) if self.state in ("joining", "ready") else []

    def lookup(self, keys: tuple[bytes, ...], deadline: int) -> tuple[int, list[Effect]]:
        """Start a lookup; its ticket."""
        ticket = self._begin(_Operation("lookup", deadline))

        def found(answer: Message | None, now: int) -> list[Effect]:
            if not isinstance(answer, Found):
                return self._end(ticket, Status.EXPIRED)
            lease = None
            if answer.blocks:
                lease = Lease(self.session.incarnation, answer.lease, answer.blocks)
            return self._finish(ticket, LookupDone(ticket, answer.status, lease, answer.blocks))

        if self.state != "ready":
            return ticket, self._end(ticket, Status.DISCONNECTED)
        return ticket, [self._ask(Lookup(keys), deadline, found)]

    def load(
        self, lease: Lease, blocks: tuple[int, ...], first: int, deadline: int
    ) -> tuple[int, list[Effect]]:
        """Start a load; its ticket."""
        ticket = self._begin(_Operation("load", deadline, blocks))

        def pages(answer: Message | None, now: int) -> list[Effect]:
            if not isinstance(answer, Pages):
                return self._end(ticket, Status.EXPIRED)
            if answer.status is not Status.OK:
                return self._end(ticket, answer.status)
            self.operations[ticket].copy = answer.copy
            if len(answer.offsets) != len(blocks):
                return self.copied_in(ticket, False, now)
            return [CopyIn(ticket, blocks, answer.offsets, deadline)]

        if self.state != "ready" or self.registered is None:
            return ticket, self._end(ticket, Status.DISCONNECTED)
        if lease.session != self.session.incarnation:
            return ticket, self._end(ticket, Status.NO_SUCH_LEASE)
        ask = Load(lease.number, self.registered[0], first, len(blocks))
        return ticket, [self._ask(ask, deadline, pages)]

    def copied_in(self, ticket: int, ok: bool, now: int) -> list[Effect]:
        """The copy of a load has stopped."""
        operation = self.operations.get(ticket)
        if operation is None:
            return []

        def confirmed(answer: Message | None, now: int) -> list[Effect]:
            if not isinstance(answer, Confirmed):
                return self._end(ticket, Status.EXPIRED)
            if not ok:
                return self._end(ticket, Status.COPY_FAILED)
            if answer.status is not Status.OK:
                return self._end(ticket, answer.status)
            return self._finish(ticket, LoadDone(ticket, Status.OK, ()))

        return [self._ask(Copied(operation.copy, ok), operation.deadline, confirmed)]

    def save(
        self,
        keys: tuple[bytes, ...],
        blocks: tuple[int, ...],
        parent: bytes,
        valid: Callable[[], bool],
        deadline: int,
    ) -> tuple[int, list[Effect]]:
        """Start a save; its ticket."""
        ticket = self._begin(_Operation("save", deadline, blocks, valid=valid))

        def saved(answer: Message | None, now: int) -> list[Effect]:
            if isinstance(answer, Saved):
                done = SaveDone(ticket, answer.status, answer.saved, answer.known)
                return self._finish(ticket, done)
            return [self._tell(Drop(ticket)), *self._end(ticket, Status.EXPIRED)]

        if self.state != "ready" or self.registered is None:
            return ticket, self._end(ticket, Status.DISCONNECTED)
        ask = Save(ticket, self.registered[0], keys, parent)
        return ticket, [self._ask(ask, deadline, saved)]

    def copied_out(self, ticket: int, batch: int, ok: bool, now: int) -> list[Effect]:
        """The copy of a batch has stopped: Keep if the blocks were the keys' all along."""
        operation = self.operations.get(ticket)
        if operation is None:
            return []
        if ok and operation.valid():
            return [self._tell(Keep(ticket, batch))]
        return self.drop(ticket)

    def drop(self, ticket: int) -> list[Effect]:
        """The engine takes the blocks of a save back."""
        if ticket not in self.operations:
            return []
        return [self._tell(Drop(ticket)), *self._end(ticket, Status.DROPPED)]

    def release(self, lease: Lease) -> list[Effect]:
        """Give a lease back."""
        if self.state != "ready" or lease.session != self.session.incarnation:
            return []
        return [self._tell(Release(lease.number))]

    def leave(self) -> list[Effect]:
        """Say goodbye to the session."""
        return [self._tell(Leave())] if self.session != NOBODY else []

    # the world

    def receive(self, envelope: Envelope, now: int) -> list[Effect]:
        """A message from the front desk or the session."""
        if envelope.receiver != self.me.address:
            return []
        if envelope.sender != self.session and envelope.sender.name != SUPERVISOR:
            return []
        msg = envelope.message
        if envelope.answer:
            question = self._questions.pop(envelope.answer, None)
            if question is not None:
                return question.then(msg, now)
            if isinstance(msg, Found) and msg.blocks:
                return [self._tell(Release(msg.lease))]
            if isinstance(msg, Pages) and msg.copy:
                return [self._ask(Copied(msg.copy, False), now + PING_NS, lambda a, n: [])]
            return []
        return self._take(msg, now) if isinstance(msg, Take) else []

    def _take(self, msg: Take, now: int) -> list[Effect]:
        operation = self.operations.get(msg.save)
        if operation is None or operation.kind != "save":
            return [self._tell(Drop(msg.save))]
        sound = len(msg.positions) == len(msg.slots) > 0
        if not sound or max(msg.positions) >= len(operation.blocks):
            return self.drop(msg.save)
        if not operation.valid():
            return self.drop(msg.save)
        blocks = tuple(operation.blocks[p] for p in msg.positions)
        return [CopyOut(msg.save, msg.batch, blocks, msg.slots, operation.deadline)]

    def session_died(self, now: int) -> list[Effect]:
        """The process of the session is proven dead."""
        return self._lose(now)

    def mapped(self, ok: bool, why: str, now: int) -> list[Effect]:
        """Pool and bounce file are mapped, or not."""
        if not ok:
            self.refusal = why
            return self._lose(now)
        self._ready()
        return []

    def wake_at(self) -> int | None:
        """When `wake` wants to be called."""
        times = [q.deadline for q in self._questions.values()]
        if self.state == "lost":
            times.append(self._retry_at)
        return min(times, default=None)

    def wake(self, now: int) -> list[Effect]:
        """Look at the time."""
        effects: list[Effect] = []
        expired = [n for n, q in self._questions.items() if q.deadline <= now]
        for number in expired:
            question = self._questions.pop(number, None)
            if question is not None:
                effects += question.then(None, now)
        if expired and self.state == "ready" and not self._pinging:
            effects += self._ping(now)
        if self.state == "lost" and now >= self._retry_at:
            effects += self._open(now)
        return effects

    # inside

    def _open(self, now: int) -> list[Effect]:
        self.state = "opening"
        m = self.me
        ask = OpenSession(m.engine, m.generation, m.pid, m.started, m.namespace, m.probe)
        number = self._number()

        def opened(answer: Message | None, now: int) -> list[Effect]:
            if isinstance(answer, SessionAt):
                return self._join(answer, now)
            if isinstance(answer, Refused):
                self.refusal = answer.why
            return self._lose(now)

        self._questions[number] = _Question(now + OPEN_NS, opened)
        desk = Address(SUPERVISOR, 0)
        return [ToDesk(Envelope(m.address, desk, ask, number, 0, now + OPEN_NS))]

    def _join(self, at: SessionAt, now: int) -> list[Effect]:
        self.state, self.session, self.advice = "joining", at.address, at.advice
        effects: list[Effect] = [DialSession(at.address, at.endpoint, at.pid)]
        if self.registered is None:
            return [*effects, *self._ping(now)]
        rank, layout, sizes = self.registered

        def attached(answer: Message | None, now: int) -> list[Effect]:
            if isinstance(answer, Attached):
                return [MapFiles(answer)]
            if isinstance(answer, Refused):
                self.refusal = answer.why
            return self._lose(now)

        m = self.me
        ask = Attach(m.pid, m.started, rank, m.world, layout, sizes)
        return [*effects, self._ask(ask, now + OPEN_NS, attached)]

    def _ping(self, now: int) -> list[Effect]:
        self._pinging = True

        def ponged(answer: Message | None, now: int) -> list[Effect]:
            self._pinging = False
            if not isinstance(answer, Pong):
                return self._lose(now)
            if self.state == "joining":
                self._ready()
            return []

        return [self._ask(Ping(), now + PING_NS, ponged)]

    def _ready(self) -> None:
        self.state, self.refusal, self._tries = "ready", "", 0

    def _lose(self, now: int) -> list[Effect]:
        """No session: everything open ends, and the front desk is asked again, later and later."""
        effects: list[Effect] = [HangUp()] if self.session != NOBODY else []
        self.state, self.session, self._pinging = "lost", NOBODY, False
        self._questions.clear()
        self._retry_at = now + RETRY_NS[min(self._tries, len(RETRY_NS) - 1)]
        self._tries += 1
        for ticket in list(self.operations):
            effects += self._end(ticket, Status.PEER_GONE)
        return effects

    def _begin(self, operation: _Operation) -> int:
        ticket = self._number()
        self.operations[ticket] = operation
        return ticket

    def _end(self, ticket: int, status: Status) -> list[Effect]:
        """An operation ends without success."""
        operation = self.operations.get(ticket)
        if operation is None:
            return []
        done: Done
        if operation.kind == "lookup":
            done = LookupDone(ticket, status, None, 0)
        elif operation.kind == "load":
            done = LoadDone(ticket, status, operation.blocks)
        else:
            done = SaveDone(ticket, status, 0, 0)
        return self._finish(ticket, done)

    def _finish(self, ticket: int, done: Done) -> list[Effect]:
        if self.operations.pop(ticket, None) is None:
            return []
        return [Finish(done)]

    def _ask(
        self, msg: Message, deadline: int, then: Callable[[Message | None, int], list[Effect]]
    ) -> ToSession:
        number = self._number()
        self._questions[number] = _Question(deadline, then)
        return ToSession(Envelope(self.me.address, self.session, msg, number, 0, deadline))

    def _tell(self, msg: Message) -> ToSession:
        return ToSession(Envelope(self.me.address, self.session, msg))

    def _number(self) -> int:
        self._last += 1
        return self._last
