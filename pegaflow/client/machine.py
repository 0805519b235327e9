"""The client's half of wire/session.py as a plain state machine: no socket, clock, thread or file.

    lost ── OpenSession ──→ SessionAt ──→ joining ── Attach, Proven (or Ping) ──→ ready
      ↑                                                                            │
      ├── the session's process is dead, or it does not answer a Ping ─────────────┤
      └── dying: killed, for it may write into our blocks and does not answer ─────┘

In: calls of the engine, envelopes, the ends of copies, the time.  Out: effects for client.py.  Each
started operation ends exactly once, with a `Done`: by its answer, at its deadline, or when the
session is lost.  An operation that ends by itself while its answer is under way leaves no trace at
the service: a late lease is released, a late CopyBatch is answered with Drop.

Staged copies are done by the client's own thread between two calls of this machine, so when an
operation ends here nothing writes the engine's blocks any more.  A load by process_vm is written by
the session: it ends by the session's word or by its proven death and by nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from pegaflow.wire.control import Refused, SessionAt
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import Key, LeaseId
from pegaflow.wire.message import Message
from pegaflow.wire.session import (
    PROOF_BYTES,
    Attached,
    BatchCopied,
    Commit,
    Confirmed,
    Copied,
    CopyBatch,
    Drop,
    Found,
    Keep,
    Leave,
    Left,
    Load,
    Loaded,
    Lookup,
    Pages,
    Ping,
    Pong,
    Prove,
    Proven,
    Release,
    Save,
    Saved,
    Skip,
    Way,
)
from pegaflow.wire.status import Status
from pegaflow.wire.values import FRONT_DESK, NOBODY, SESSION, SUPERVISOR, Address

from .effects import (
    CopyIn,
    CopyOut,
    DialSession,
    Effect,
    Finish,
    HangUp,
    Identity,
    KillSession,
    MapFiles,
    Memory,
    ToDesk,
    ToSession,
    WriteProof,
)
from .operations import Kind, Operation, Question, State, expire
from .patience import ABSENT_NS, GRACE_NS, LEAVE_NS, OPEN_NS, PING_NS, RETRY_NS
from .results import Done, Lease, LoadDone, LookupDone, SaveDone


@dataclass(slots=True)
class Machine:
    """One client of one engine."""

    me: Identity
    busy: Callable[[], bool] = lambda: False  # whether the session is ready to run
    state: State = State.LOST
    refusal: str = ""  # why we are not served, as far as it is known
    seen: str = ""  # what to say of the front desk that was asked last, if it does not answer
    advice: str = ""  # what the service had to say when it took us
    session: Address = NOBODY
    memory: Memory | None = None  # what is registered
    loads: Way = Way.STAGED  # how our rank is served; valid in ready
    saves: Way = Way.STAGED
    note: str = ""  # why not the way that was wished
    gone: bool = False  # we have left, and nothing asks the front desk any more
    operations: dict[int, Operation] = field(default_factory=dict)  # without an end yet
    _questions: dict[int, Question] = field(default_factory=dict)
    _last: int = 0  # newest ticket or question number
    _tries: int = 0  # OpenSessions in a row without success
    _retry_at: int = 0
    _pinging: bool = False
    _mapped: bool = False  # the session has had what it needs to reach our memory
    _visible: bool = False  # we hold a pidfd of the session

    # the engine's calls

    def register(self, memory: Memory) -> list[Effect]:
        """Remember the memory; it is attached by the next `wake`.  Nothing may be registered."""
        assert self.memory is None
        self.memory = memory
        return self._lose(0) if self.state in (State.JOINING, State.READY) else []

    def lookup(self, keys: tuple[Key, ...], deadline: int) -> tuple[int, list[Effect]]:
        """Start a lookup; its ticket, and what follows.  Times are CLOCK_MONOTONIC, in ns."""
        ticket = self._begin(Operation(Kind.LOOKUP, deadline))

        def found(answer: Message | None, now: int) -> list[Effect]:
            if not isinstance(answer, Found):
                return self._end(ticket, Status.EXPIRED)
            if answer.blocks > len(keys):  # more than there can be: believe nothing of it
                return [self._tell(Release(answer.lease)), *self._end(ticket, Status.UNKNOWN)]
            life, blocks = self.session.incarnation, answer.blocks
            lease = Lease(life, answer.lease, blocks) if blocks else None
            done = LookupDone(ticket, answer.status, lease, blocks, tuple(answer.disk))
            return self._finish(ticket, done)

        if self.state is not State.READY:
            return ticket, self._end(ticket, Status.DISCONNECTED)
        return ticket, [self._ask(Lookup(keys), deadline, found, ticket)]

    def load(
        self, lease: Lease, blocks: tuple[int, ...], first: int, deadline: int, *, now: int
    ) -> tuple[int, list[Effect]]:
        """Start a load; its ticket, and what follows.  Times are CLOCK_MONOTONIC, in ns."""
        ticket = self._begin(Operation(Kind.LOAD, deadline, blocks))

        def pages(answer: Message | None, now: int) -> list[Effect]:
            if not isinstance(answer, Pages):
                return self._end(ticket, Status.EXPIRED)
            if answer.status is not Status.OK:
                return self._end(ticket, answer.status)
            operation = self.operations.get(ticket)
            if operation is None:
                return []  # we left meanwhile, which ends the copy at the session too
            operation.copy = answer.copy
            if len(answer.offsets) != len(blocks):
                return self.copied_in(ticket, False, now)
            return [CopyIn(ticket, blocks, answer.offsets, deadline)]

        def loaded(answer: Message | None, now: int) -> list[Effect]:
            if isinstance(answer, Loaded | Pages) and answer.status is not Status.OK:
                return self._end(ticket, answer.status)
            if not isinstance(answer, Loaded):
                return self._kill(now)
            return self._finish(ticket, LoadDone(ticket, Status.OK, ()))

        if self.state is not State.READY or self.memory is None:
            return ticket, self._end(ticket, Status.DISCONNECTED)
        if lease.session != self.session.incarnation:
            return ticket, self._end(ticket, Status.NO_SUCH_LEASE)
        if self.loads is Way.STAGED:
            ask = Load(LeaseId(lease.number), self.memory.rank, first, len(blocks))
            return ticket, [self._ask(ask, deadline, pages, ticket)]
        self.operations[ticket].direct = True
        ask = Load(LeaseId(lease.number), self.memory.rank, first, len(blocks), blocks)
        grace = min(GRACE_NS, max(0, deadline - now) // 2)
        return ticket, [self._ask(ask, deadline - grace, loaded, ticket, grace=grace, fatal=True)]

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

        return [self._ask(Copied(operation.copy, ok), operation.deadline, confirmed, ticket)]

    def save(
        self,
        keys: tuple[Key, ...],
        blocks: tuple[int, ...],
        *,
        parent: Key,
        valid: Callable[[], bool],
        deadline: int,
        order: int = 0,
        commits: bool = False,
    ) -> tuple[int, list[Effect]]:
        """Start a save; its ticket, and what follows.  Times are CLOCK_MONOTONIC, in ns."""
        ticket = self._begin(Operation(Kind.SAVE, deadline, blocks, valid=valid))

        def saved(answer: Message | None, now: int) -> list[Effect]:
            if isinstance(answer, Saved):
                done = SaveDone(ticket, answer.status, answer.saved, answer.known)
                return self._finish(ticket, done)
            return [self._tell(Drop(ticket)), *self._end(ticket, Status.EXPIRED)]

        if self.state is not State.READY or self.memory is None:
            return ticket, self._end(ticket, Status.DISCONNECTED)
        named = blocks if self.saves is Way.PROCESS_VM else ()
        ask = Save(ticket, self.memory.rank, keys, parent, order, named, commits)
        return ticket, [self._ask(ask, deadline, saved, ticket)]

    def copied_out(self, ticket: int, batch: int, ok: bool, now: int) -> list[Effect]:
        """The copy of a batch has stopped: Keep if the blocks were the keys' all along."""
        operation = self.operations.get(ticket)
        if operation is None or operation.kind is not Kind.SAVE:
            return []
        if ok and operation.valid():
            return [self._tell(Keep(ticket, batch))]
        return self.drop(ticket)

    def skip(self, order: int) -> list[Effect]:
        """This rank, or the whole engine, will not save an order."""
        return [self._tell(Skip(order))] if self.state is State.READY else []

    def commit(self, orders: tuple[int, ...]) -> list[Effect]:
        """The engine stands by these orders."""
        return [self._tell(Commit(orders))] if self.state is State.READY else []

    def drop(self, ticket: int) -> list[Effect]:
        """The engine takes the blocks of a save back."""
        operation = self.operations.get(ticket)
        if operation is None or operation.kind is not Kind.SAVE:
            return []
        return [self._tell(Drop(ticket)), *self._end(ticket, Status.DROPPED)]

    def release(self, lease: Lease) -> list[Effect]:
        """Give a lease back."""
        if self.state is not State.READY or lease.session != self.session.incarnation:
            return []
        return [self._tell(Release(LeaseId(lease.number)))]

    def leave(self, now: int, for_good: bool = True) -> list[Effect]:
        """Say goodbye to the session and forget the memory; it is over when the state is `lost`."""
        self.gone, self.memory = for_good, None
        if self.state not in (State.JOINING, State.READY):
            return [] if self.state is State.DYING else self._lose(now)

        def left(answer: Message | None, now: int) -> list[Effect]:
            return self._lose(now) if isinstance(answer, Left) else self._kill(now)

        effects: list[Effect] = []
        for ticket in [t for t, operation in self.operations.items() if not operation.direct]:
            effects += self._end(ticket, Status.DISCONNECTED)
        loads = {operation.question for operation in self.operations.values()}
        self._questions = {n: q for n, q in self._questions.items() if n in loads}
        self.state, self._pinging = State.LEAVING, False
        return [*effects, self._ask(Leave(), now + LEAVE_NS, left)]

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
        if isinstance(msg, BatchCopied):
            return self.copied_out(msg.save, msg.batch, True, now)
        return self._copy(msg, now) if isinstance(msg, CopyBatch) else []

    def _copy(self, msg: CopyBatch, now: int) -> list[Effect]:
        operation = self.operations.get(msg.save)
        if operation is None or operation.kind is not Kind.SAVE:
            return [self._tell(Drop(msg.save))]
        sound = len(msg.positions) == len(msg.slots) > 0
        if not sound or max(msg.positions) >= len(operation.blocks):
            return self.drop(msg.save)
        if not operation.valid():
            return self.drop(msg.save)
        blocks = tuple(operation.blocks[p] for p in msg.positions)
        return [CopyOut(msg.save, msg.batch, blocks, msg.slots, operation.deadline)]

    def dialled(self, visible: bool, now: int) -> list[Effect]:
        """The link is open; whether we hold a pidfd of the session, which is its proof of death."""
        self._visible, self._mapped = visible, False
        memory, me = self.memory, self.me
        if memory is None:
            return self._ping(now)
        if memory.way is Way.PROCESS_VM and not visible:
            self.refusal = "no process_vm: the session is on TCP or in another pid namespace"
            return self._lose(now)
        return [self._ask(me.attaching(memory, visible), now + OPEN_NS, self._attached)]

    def _attached(self, answer: Message | None, now: int) -> list[Effect]:
        if isinstance(answer, Prove) and len(answer.proof) == PROOF_BYTES:
            self._mapped = True
            proven = self._ask(Proven(), now + OPEN_NS, self._attached)
            return [WriteProof(answer.proof), proven]
        if isinstance(answer, Attached):
            self.loads, self.saves, self.note = answer.loads, answer.saves, answer.note
            return [MapFiles(answer)]
        if isinstance(answer, Refused):
            self.refusal = answer.why
        return self._lose(now)

    def unreachable(self, now: int) -> list[Effect]:
        """The front desk cannot be asked: nobody is there, or nobody whom we trust."""
        self.refusal = self.seen
        return self._lose(now, most=ABSENT_NS)

    def session_died(self, now: int) -> list[Effect]:
        """The process of the session is proven dead."""
        return self._lose(now, proven=True)

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
        if self.state is State.LOST and not self.gone:
            times.append(self._retry_at)
        return min(times, default=None)

    def wake(self, now: int) -> list[Effect]:
        """Look at the time."""
        expired, effects = expire(self._questions, now, self._spared)
        if expired and self.state is State.READY and not self._pinging:
            effects += self._ping(now)
        if self.state is State.LOST and not self.gone and now >= self._retry_at:
            effects += self._open(now)
        return effects

    # inside

    def _open(self, now: int) -> list[Effect]:
        self.state, number = State.OPENING, self._number()

        def opened(answer: Message | None, now: int) -> list[Effect]:
            if isinstance(answer, SessionAt) and answer.address.name == SESSION:
                return self._join(answer, now)
            self.refusal = answer.why if isinstance(answer, Refused) else self.seen or self.refusal
            if isinstance(answer, SessionAt):
                self.refusal = "the front desk named something else than a session"
            return self._lose(now)

        self._questions[number] = Question(now + OPEN_NS, opened)
        ask = self.me.opening()
        return [ToDesk(Envelope(self.me.address, FRONT_DESK, ask, number, 0, now + OPEN_NS))]

    def _join(self, at: SessionAt, now: int) -> list[Effect]:
        self.state, self.session, self.advice = State.JOINING, at.address, at.advice
        return [DialSession(at.address, at.endpoint, at.pid)]

    def _ping(self, now: int) -> list[Effect]:
        self._pinging = True

        def ponged(answer: Message | None, now: int) -> list[Effect]:
            self._pinging = False
            if not isinstance(answer, Pong):
                return self._lose(now)
            if self.state is State.JOINING:
                self._ready()
            return []

        return [self._ask(Ping(), now + PING_NS, ponged, fatal=True)]

    def _spared(self) -> bool:
        return any(o.direct for o in self.operations.values()) and self.busy()

    def _ready(self) -> None:
        self.state, self.refusal, self._tries = State.READY, "", 0

    def _lose(self, now: int, proven: bool = False, most: int = RETRY_NS[-1]) -> list[Effect]:
        """No session: everything open ends, and the front desk is asked again, later and later."""
        if not proven and any(operation.direct for operation in self.operations.values()):
            return self._kill(now)
        effects: list[Effect] = [HangUp()] if self.session != NOBODY else []
        self.state, self.session, self._pinging = State.LOST, NOBODY, False
        self._mapped = False
        self._questions.clear()
        self._retry_at = now + min(most, RETRY_NS[min(self._tries, len(RETRY_NS) - 1)])
        self._tries += 1
        for ticket in list(self.operations):
            effects += self._end(ticket, Status.PEER_GONE)
        return effects

    def _kill(self, now: int) -> list[Effect]:
        """The session does not answer.  If it can reach our memory it has to die first: only then
        do the loads that it carries out end."""
        if not (self._mapped and self._visible):
            return self._lose(now, proven=True)
        self.state, self._pinging = State.DYING, False
        self._questions.clear()
        effects: list[Effect] = []
        for ticket in [t for t, operation in self.operations.items() if not operation.direct]:
            effects += self._end(ticket, Status.PEER_GONE)
        return [*effects, KillSession()]

    def _begin(self, operation: Operation) -> int:
        ticket = self._number()
        self.operations[ticket] = operation
        return ticket

    def _end(self, ticket: int, status: Status) -> list[Effect]:
        """An operation ends without success."""
        operation = self.operations.get(ticket)
        return [] if operation is None else self._finish(ticket, operation.failed(ticket, status))

    def _finish(self, ticket: int, done: Done) -> list[Effect]:
        operation = self.operations.pop(ticket, None)
        if operation is not None:
            self._questions.pop(operation.question, None)
        return [Finish(done)] if operation is not None else []

    def _ask(
        self,
        msg: Message,
        deadline: int,
        then: Callable[[Message | None, int], list[Effect]],
        ticket: int = 0,
        *,
        grace: int = 0,
        fatal: bool = False,
    ) -> ToSession:
        """A question; `then` hears of its end by the answer, or so long after the deadline, unless
        the operation for which it is asked ends before."""
        number = self._number()
        if ticket:
            self.operations[ticket].question = number
        self._questions[number] = Question(deadline + grace, then, fatal)
        return ToSession(Envelope(self.me.address, self.session, msg, number, 0, deadline))

    def _tell(self, msg: Message) -> ToSession:
        return ToSession(Envelope(self.me.address, self.session, msg))

    def _number(self) -> int:
        self._last += 1
        return self._last
