"""The client's half of wire/session.py as a plain state machine: no socket, clock, thread or file.

    lost ── OpenSession ──→ SessionAt ──→ joining ── Attach, Proven (or Ping) ──→ ready
      ↑                                                                            │
      ├── the session's process is dead, or it does not answer a Ping ─────────────┤
      └── dying: killed, for it may write into our blocks and does not answer ─────┘

In: calls of the engine, envelopes, the ends of copies, the time.  Out: effects for shell.py.  What
is done in `ready` is a part of its own (operations.py), and so is what was asked and has no answer
yet (link.py).
"""

from collections.abc import Callable
from dataclasses import replace
from enum import Enum

from pegaflow.wire.control import Refused, SessionAt
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.message import Message
from pegaflow.wire.session import PROOF_BYTES, Attached, Leave, Left, Ping, Pong, Prove, Proven, Way
from pegaflow.wire.status import Status
from pegaflow.wire.values import FRONT_DESK, NOBODY, SESSION, SUPERVISOR, Address

from .effects import (
    DialSession,
    Effect,
    HangUp,
    Identity,
    KillSession,
    MapFiles,
    Memory,
    ToDesk,
    WriteProof,
)
from .link import Link
from .operations import Operations
from .patience import (
    ABSENT_NS,
    FALLS_MAX,
    LEAVE_NS,
    OPEN_GPU_NS,
    OPEN_NS,
    PING_NS,
    RETRY_NS,
    SOON_NS,
)

FALLEN = "sessions that opened the GPU memory died of it, one after the other"
"""Why staged copies are wished now."""


class State(Enum):
    """Where the machine is on its way to a session, or from one."""

    LOST = "lost"  # no session; the front desk is asked again, later and later
    OPENING = "opening"  # it is asked
    JOINING = "joining"  # it has named a session, which is dialled and attached
    READY = "ready"  # the session serves us
    LEAVING = "leaving"  # we said Leave and await Left
    DYING = "dying"  # it is killed, and its death not proven yet

    @property
    def is_going(self) -> bool:
        """Whether the session may still write into our blocks, though we are done with it."""
        return self in (State.LEAVING, State.DYING)


class Machine:
    """One client of one engine.

    Args:
        me: who it is.
        busy: whether the session's process is ready to run.
    """

    def __init__(self, me: Identity, busy: Callable[[], bool] = lambda: False) -> None:
        self.me, self.busy = me, busy
        self.state = State.LOST
        self.refusal = ""  # why we are not served, as far as it is known
        self._denied = False  # what was asked last said no, or was not there
        self.seen = ""  # what to say of the front desk that was asked last, if it does not answer
        self.advice = ""  # what the service had to say when it took us
        self.note = ""  # why our rank is not served in the way that was wished
        self.gone = False  # we have left, and nothing asks the front desk any more
        self.link = link = Link(me.address)
        self.operations = Operations(link, lambda: self.state is State.READY, self._kill)
        self._tries = 0  # OpenSessions in a row without success
        self._retry_at_ns = 0
        self._pinging = False
        self._mapped = False  # the session has had what it needs to reach our memory
        self.visible = False  # we hold a pidfd of the session
        self.by_gpu = False  # a GPU may write into our blocks on its behalf
        self._falls = 0  # sessions in a row that GPU memory may have ended, and none has moved any
        self._fell = False  # the last session is one of them
        self._desk = NOBODY  # the supervisor that has named it, or answered since
        self._left = NOBODY  # the session that we have taken leave of last, which may end of that
        self._attached_ns: int | None = None  # since when the session has our memory open
        self.lives = 0  # times that a session began to serve us

    # the engine's calls

    def register(self, memory: Memory) -> list[Effect]:
        """Remember the memory; it is attached by the next `wake`.  Nothing may be registered."""
        assert self.operations.memory is None
        self.operations.memory, self._falls, self._fell = memory, 0, False
        return self._lose(0) if self.state in (State.JOINING, State.READY) else []

    def leave(self, now: int, for_good: bool = True) -> list[Effect]:
        """Say goodbye to the session and forget the memory; it is over when the state is `lost`."""
        self.gone, self.operations.memory = for_good, None
        if self.state not in (State.JOINING, State.READY):
            return [] if self.state.is_going else self._lose(now)

        def left(answer: Message | None, now: int) -> list[Effect]:
            return self._lose(now) if isinstance(answer, Left) else self._kill(now)

        effects = self.operations.end_staged(Status.DISCONNECTED)
        self.link.forget_all(but=self.operations.questions())
        self.state, self._pinging, self._left = State.LEAVING, False, self.link.session
        return [*effects, self.link.ask(Leave(), now + LEAVE_NS, left)]

    # the world

    def receive(self, envelope: Envelope, now: int) -> list[Effect]:
        """A message from the front desk or the session."""
        if envelope.receiver != self.me.address:
            return []
        if envelope.sender != self.link.session and envelope.sender.name != SUPERVISOR:
            return []
        msg = envelope.message
        if envelope.sender.name == SUPERVISOR and envelope.sender != self._desk:
            self._served_anew(envelope.sender)
        if not envelope.answer:
            return self.operations.heard(msg, now)
        then = self.link.answered(envelope.answer)
        return self.operations.too_late(msg, now) if then is None else then(msg, now)

    def dialled(self, visible: bool, now: int) -> list[Effect]:
        """The link is open; whether we hold a pidfd of the session, which is its proof of death."""
        memory, me = self.operations.memory, self.me
        if memory is not None and self._falls >= FALLS_MAX:
            memory = replace(memory, way=Way.STAGED)
        self.visible, self._attached_ns = visible, None
        named = memory is not None and memory.gpu.regions and memory.way is not Way.STAGED
        self._mapped = self.by_gpu = bool(visible and named)
        if memory is None:
            return self._ping(now)
        if memory.way is Way.PROCESS_VM and not visible:
            self._denied = True
            self.refusal = "no process_vm: the session is on TCP or in another pid namespace"
            return self._lose(now)
        until = now + (OPEN_GPU_NS if self.by_gpu else OPEN_NS)
        return [self.link.ask(me.attaching(memory, visible), until, self._attached)]

    def _attached(self, answer: Message | None, now: int) -> list[Effect]:
        if isinstance(answer, Prove) and len(answer.proof) == PROOF_BYTES:
            self._mapped = True
            proven = self.link.ask(Proven(), now + OPEN_NS, self._attached)
            return [WriteProof(answer.proof), proven]
        if isinstance(answer, Attached):
            self.operations.loads, self.operations.saves = answer.loads, answer.saves
            self.operations.chains = answer.chains
            self.note = answer.note or (FALLEN if self._falls >= FALLS_MAX else "")
            self._attached_ns = now
            if self.by_gpu and answer.loads is Way.STAGED:  # what it had opened it has closed
                self._mapped = self.by_gpu = False
            return [MapFiles(answer)]
        if isinstance(answer, Refused):
            self.refusal, self._denied = answer.why, True
            return self._lose(now)
        return self._leave_alone(now)

    def unreachable(self, now: int) -> list[Effect]:
        """The front desk cannot be asked: nobody is there, or nobody whom we trust."""
        self.refusal, self._denied = self.seen, True
        return self._lose(now, most_ns=ABSENT_NS)

    def session_died(self, now: int) -> list[Effect]:
        """The process of the session is proven dead."""
        fell = self.by_gpu and self.link.session != self._left and not self._rested(now)
        self._falls, self._fell = self._falls + fell, fell
        return self._lose(now, proven=True)

    def mapped(self, ok: bool, why: str, now: int) -> list[Effect]:
        """Pool and bounce file are mapped, or not."""
        if not ok:
            self.refusal, self._denied = why, True
            return self._lose(now)
        self._ready()
        return []

    @property
    def why(self) -> str:
        """Why we are not served, as far as it is known, or who is asked."""
        return self.refusal or (self.seen if self.state is State.OPENING else "")

    @property
    def ways(self) -> tuple[str, str, str]:
        """How loads and saves move, and why not as wished."""
        operations = self.operations
        return operations.loads.name.lower(), operations.saves.name.lower(), self.note

    @property
    def refused(self) -> bool:
        """Whether we are not served, and not because somebody is slow."""
        return self.state is State.LOST and self._denied

    def wake_at(self) -> int | None:
        """When `wake` wants to be called."""
        times = [self.link.wake_at(), self._retry_at_ns if self._seeks else None]
        return min((time for time in times if time is not None), default=None)

    def wake(self, now: int) -> list[Effect]:
        """Look at the time."""
        expired, effects = self.link.expire(now, self._spared)
        if expired and self.state is State.READY and not self._pinging:
            effects += self._ping(now)
        if self._seeks and now >= self._retry_at_ns:
            effects += self._open(now)
        return effects

    # inside

    @property
    def _seeks(self) -> bool:
        """Whether the front desk is to be asked for a session."""
        return self.state is State.LOST and not self.gone

    def _open(self, now: int) -> list[Effect]:
        self.state = State.OPENING

        def opened(answer: Message | None, now: int) -> list[Effect]:
            if isinstance(answer, SessionAt) and answer.address.name == SESSION:
                return self._join(answer, now)
            self.refusal = answer.why if isinstance(answer, Refused) else self.seen or self.refusal
            self._denied = answer is not None
            if isinstance(answer, SessionAt):
                self.refusal = "the front desk named something else than a session"
            return self._lose(now)

        deadline, me = now + OPEN_NS, self.me
        number, ask = self.link.expect(deadline, opened), me.opening()
        return [ToDesk(Envelope(me.address, FRONT_DESK, ask, question=number, deadline=deadline))]

    def _join(self, at: SessionAt, now: int) -> list[Effect]:
        self.state, self.link.session, self.advice = State.JOINING, at.address, at.advice
        return [DialSession(at.address, at.endpoint, at.pid)]

    def _ping(self, now: int) -> list[Effect]:
        self._pinging = True

        def ponged(answer: Message | None, now: int) -> list[Effect]:
            self._pinging = False
            if not isinstance(answer, Pong):
                return self._leave_alone(now)
            if self.state is State.JOINING:
                self._ready()
            return []

        return [self.link.ask(Ping(), now + PING_NS, ponged, fatal=True)]

    def _served_anew(self, desk: Address) -> None:
        """This supervisor is another than before, whose death has ended our session."""
        if self._fell and self._desk != NOBODY:
            self._falls -= 1
        self._desk, self._fell = desk, False

    def _rested(self, now: int) -> bool:
        """Whether the session has had our memory open for a while, and nothing to do there."""
        since = self._attached_ns
        return since is not None and now >= since + SOON_NS and not self.operations.asked

    def _spared(self) -> bool:
        return self.operations.written and self.busy()

    def _ready(self) -> None:
        self.state, self.refusal, self._tries = State.READY, "", 0
        self._denied = False
        self.lives += 1

    def _lose(self, now: int, proven: bool = False, most_ns: int = RETRY_NS[-1]) -> list[Effect]:
        """No session: everything open ends, and the front desk is asked again, later and later."""
        if not proven and self.operations.written:
            return self._kill(now)
        effects: list[Effect] = [HangUp()] if self.link.session != NOBODY else []
        self.state, self.link.session, self._pinging = State.LOST, NOBODY, False
        self._mapped = False
        self.link.forget_all()
        if self.operations.forget_session():
            self._falls, self._fell = 0, False
        self._retry_at_ns = now + min(most_ns, RETRY_NS[min(self._tries, len(RETRY_NS) - 1)])
        self._tries += 1
        return [*effects, *self.operations.end_all(Status.PEER_GONE)]

    def _leave_alone(self, now: int) -> list[Effect]:
        """The session says nothing: go on without it.  What it has open on a GPU nobody may free
        (wire/gpu.py), so it has to die first."""
        return self._kill(now) if self.by_gpu else self._lose(now)

    def _kill(self, now: int) -> list[Effect]:
        """The session does not answer.  If it can reach our memory it has to die first: only then
        do the loads that it carries out end."""
        if not (self._mapped and self.visible):
            return self._lose(now, proven=True)
        self.state, self._pinging = State.DYING, False
        self.link.forget_all()
        return [*self.operations.end_staged(Status.PEER_GONE), KillSession()]
