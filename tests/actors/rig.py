"""One actor in its Host, as a plain object: say something to it and look at what it does.

Every call returns the envelopes of that step; jobs collect in `jobs` until `done` ends the oldest
of a kind.  All invariants are checked after each step.
"""

from typing import Any, TypeVar

from pegaflow.actors.runtime.contract import Actor, Dial, Hangup, Note, Rebind
from pegaflow.actors.runtime.host import Host, Step
from pegaflow.wire.control import Hello, Members, Welcome
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.jobs import Done, Job, Result
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.values import (
    ALLOCATOR,
    CLIENT,
    INDEX,
    REMOTE_PEER,
    SESSION,
    SUPERVISOR,
    Address,
)

BOSS = Address(SUPERVISOR, Incarnation(1))
ALLOC = Address(ALLOCATOR, Incarnation(2))
IDX = Address(INDEX, Incarnation(3))
SESSION_4 = Address(SESSION, Incarnation(4))
SESSION_5 = Address(SESSION, Incarnation(5))
CLIENT_7 = Address(CLIENT, Incarnation(7))
CLIENT_8 = Address(CLIENT, Incarnation(8))

MS = 1_000_000
PAGE = 16 * 1024
EXTENT = 4 * PAGE
POOL = 2 * EXTENT
HELLO = Hello(100, 200, "ipc://somewhere")
WELCOME = Welcome("pool", "ledger", POOL, EXTENT, run_dir="run")
NOBODY_ELSE = Members((), ())

M = TypeVar("M", bound=Message)


class Rig:
    """Drives one Host."""

    def __init__(self, actor: Actor) -> None:
        self.host = Host(actor)
        self.me = actor.address
        self.now = 1000 * MS
        self.jobs: list[tuple[int, Job[Any]]] = []  # without an end yet, oldest first
        self.links: list[Dial | Hangup | Rebind] = []  # all so far
        self.notes: list[Note] = []  # all so far
        self.stop: str | None = None  # the reason, once the actor has stopped
        self._question = 0

    def start(self) -> list[Envelope]:
        return self._look(self.host.start(self.now))

    def tell(self, sender: Address, msg: Message) -> list[Envelope]:
        return self._look(self.host.deliver(Envelope(sender, self._me(sender), msg), self.now))

    def ask(
        self,
        sender: Address,
        msg: Message,
        deadline: int = 0,
        to: Address | None = None,
        remote: bool = False,
    ) -> list[Envelope]:
        self._question += 1
        frame = Envelope(sender, to or self._me(sender), msg, self._question, deadline=deadline)
        return self._look(self.host.deliver(frame, self.now, remote=remote))

    def answer(self, question: Envelope, msg: Message) -> list[Envelope]:
        assert question.question
        me = self._me(question.receiver)
        frame = Envelope(question.receiver, me, msg, answer=question.question)
        return self._look(self.host.deliver(frame, self.now))

    def inform(self, msg: Message) -> list[Envelope]:
        return self._look(self.host.inform(msg, self.now))

    def done(
        self, kind: type[Job[Any]], ended: Result | Status = Status.OK, note: str = ""
    ) -> list[Envelope]:
        """End the oldest outstanding job of this kind; a status stands for a Done."""
        entry = next(e for e in self.jobs if isinstance(e[1], kind))
        self.jobs.remove(entry)
        result = Done(ended, note) if isinstance(ended, Status) else ended
        return self._look(self.host.complete(entry[0], result, self.now))

    def wait(self, nanoseconds: int) -> list[Envelope]:
        """Let time pass, waking the actor whenever it wants to be woken."""
        until = self.now + nanoseconds
        sent: list[Envelope] = []
        while (at := self.host.wake_at()) is not None and at <= until:
            self.now = max(self.now, at)
            sent += self.wake()
        self.now = until
        return sent

    def wake(self) -> list[Envelope]:
        return self._look(self.host.wake(self.now))

    def count(self, name: str) -> int:
        return self.host.actor.counts[name]

    def wanted(self, kind: type[M]) -> list[M]:
        """The outstanding jobs of a kind."""
        return [job for _, job in self.jobs if isinstance(job, kind)]

    def _me(self, sender: Address) -> Address:
        """How this sender knows us."""
        abroad = self.host.actor.abroad
        return abroad if sender.name == REMOTE_PEER and abroad is not None else self.me

    def _look(self, step: Step) -> list[Envelope]:
        self.jobs += step.jobs
        self.links += step.links
        self.notes += step.notes
        self.stop = step.stop if step.stop is not None else self.stop
        self.host.check()
        return step.envelopes


def pick(sent: list[Envelope], kind: type[Message], to: Address | None = None) -> list[Envelope]:
    """The envelopes with a message of this kind (for this receiver)."""
    return [e for e in sent if isinstance(e.message, kind) and to in (None, e.receiver)]


def one(sent: list[Envelope], kind: type[Message], to: Address | None = None) -> Envelope:
    """The only envelope of this kind."""
    (found,) = pick(sent, kind, to)
    return found


def said(sent: list[Envelope], kind: type[M], to: Address | None = None) -> M:
    """The only message of this kind."""
    msg = one(sent, kind, to).message
    assert isinstance(msg, kind)
    return msg
