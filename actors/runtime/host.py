"""The pure half of a process: one actor, its outstanding questions and its outstanding jobs.

`Host` turns envelopes and completions into calls of the actor, and the actor's effects into
envelopes and jobs for the shell.  It gives each question exactly one end: the answer, or a
`NoAnswer` at its deadline or when the peer is proven dead.  An answer that comes after that is
counted and dropped by its number.  Frames from or to any other life than the current one are
counted and dropped too, so what was queued for a dead process cannot reach its successor.

Of a client's question it keeps when it came and of what kind it is, and counts both with the answer
(series.RPC), whichever actor answers.

The shell and the simulator drive the same Host, so both see the same matching and the same drops.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from heapq import heapify, heappop, heappush
from typing import Any

from pegaflow.core import series
from pegaflow.wire.control import Gone
from pegaflow.wire.envelope import Envelope, pack
from pegaflow.wire.jobs import Job, Result
from pegaflow.wire.message import Message, encode
from pegaflow.wire.status import Status
from pegaflow.wire.units import Bytes, Count
from pegaflow.wire.values import (
    ANY_PEER,
    CLIENT,
    FRONT_DESK,
    PEER_PLACE,
    REMOTE_PEER,
    SUPERVISOR,
    Address,
)

from .contract import (
    Actor,
    Ask,
    Completion,
    Dial,
    Do,
    Effect,
    Hangup,
    NoAnswer,
    Note,
    Rebind,
    Redeliver,
    Reply,
    Send,
    Sender,
    Then,
)

ASKS_MAX: Count = 100_000
"""Most outstanding questions of one process: far above what the queues of its neighbours hold."""

STALE_MAX: Count = 256
"""Answered questions still in the heap of deadlines before it is built anew."""

GONE_MAX: Count = 4096
"""Lives remembered as dead: a supervisor's whole restart budget many times over."""

INPUTS_MAX: Count = 4096
"""Inputs kept for the black box: minutes of an idle actor, seconds of a busy one."""

INPUTS_BYTES_MAX: Bytes = 64 << 20
"""Bytes of these inputs: room for all of them in everyday sizes, and for eight of the largest."""


class Input(StrEnum):
    """What an actor has been given."""

    START = "start"
    FRAME = "frame"  # from a socket of this host
    REMOTE = "remote"  # from the one on TCP
    DONE = "done"  # of a job
    INFORM = "inform"  # by the shell
    WAKE = "wake"


@dataclass(slots=True)
class Step:
    """What the shell has to do after one input, in this order."""

    links: list[Dial | Hangup | Rebind] = field(default_factory=list)
    envelopes: list[Envelope] = field(default_factory=list)
    jobs: list[tuple[int, Job[Any]]] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    stop: str | None = None


@dataclass(slots=True)
class _Question:
    to: Address
    deadline: int
    then: Then


class Host:
    """Runs one actor."""

    def __init__(self, actor: Actor) -> None:
        self.actor = actor
        self._last = 0  # number of the newest question or job; never reused
        self._asks: dict[int, _Question] = {}  # outstanding questions
        self._deadlines: list[tuple[int, int]] = []  # heap of (deadline, number): see _due
        self._jobs: dict[int, tuple[type[Job[Any]], Completion]] = {}  # outstanding jobs
        self._gone: OrderedDict[Address, None] = OrderedDict()  # proven dead, oldest first
        self.inputs: deque[tuple[int, Input, bytes, bytes]] = deque()  # the last ones: black box
        self._input_bytes = 0  # of heads and bodies in `inputs`
        self.input_count = 0  # inputs so far; more than len(inputs) means the start is lost

    def start(self, now: int) -> Step:
        """The actor's first step."""
        self._note(now, Input.START, b"", b"")
        return self._run(lambda: self.actor.start(now), now)

    def deliver(
        self,
        envelope: Envelope,
        now: int,
        frames: list[bytes] | None = None,
        remote: bool = False,
    ) -> Step:
        """One envelope from a socket.

        Args:
            frames: the envelope as it came, if that is at hand; for the black box.
            remote: it came in over TCP.
        """
        e = envelope
        if not self._is_me(e) or e.sender in self._gone or not self.actor.knows(e.sender):
            self.actor.counts["frames_of_other_lives"] += 1
            return Step()
        self._note(now, Input.REMOTE if remote else Input.FRAME, *(frames or pack(e)))
        if e.answer:
            return self._answer(e.sender, e.answer, e.message, now)
        if not self.actor.accepts(type(e.message), e.sender.name):
            self.actor.counts["frames_unwanted"] += 1
            return Step()
        if isinstance(e.message, Gone):
            return self._gone_step(e, e.message.address, now)
        timed = type(e.message).__name__ if e.question and e.sender.name == CLIENT else ""
        sender = Sender(e.sender, e.question, e.deadline, remote, asked_ns=now, method=timed)
        return self._run(lambda: self.actor.receive(sender, e.message, now), now)

    def complete(self, number: int, result: Result, now: int) -> Step:
        """A job has ended.

        Args:
            number: as `Step.jobs` gave it; each comes once.
            result: of a class that the job names.
        """
        head = number.to_bytes(8, "little") + result.TAG.to_bytes(8, "little")
        self._note(now, Input.DONE, head, encode(result))
        kind, then = self._jobs.pop(number)
        assert isinstance(result, kind.RESULTS), f"{kind.__name__} ends with {result}"
        return self._run(lambda: then(result, now), now)

    def inform(self, msg: Message, now: int) -> Step:
        """Something the shell itself has to say to the actor (a child's exit, a signal).

        Args:
            msg: of a kind that the actor takes from its own name.
        """
        self._note(now, Input.INFORM, msg.TAG.to_bytes(8, "little"), encode(msg))
        sender = Sender(self.actor.address)
        return self._run(lambda: self.actor.receive(sender, msg, now), now)

    def wake(self, now: int) -> Step:
        """Expire questions whose deadline has passed, then let the actor look at the time."""
        self._note(now, Input.WAKE, b"", b"")
        step = Step()
        while (first := self._due()) is not None and first[0] <= now:
            self.actor.counts["questions_expired"] += 1
            self._end(first[1], NoAnswer(Status.EXPIRED), now, step)
        at = self.actor.wake_at()
        if at is not None and at <= now:
            self._apply(self.actor.wake(now), step, now)
        return step

    def wake_at(self) -> int | None:
        """The next time at which `wake` has something to do."""
        own = self.actor.wake_at()
        due = self._due()
        if due is None:
            return own
        return due[0] if own is None else min(due[0], own)

    def outstanding(self) -> tuple[int, int]:
        """Questions and jobs without an end yet."""
        return len(self._asks), len(self._jobs)

    def check(self) -> None:
        """Assert every invariant of this half and of the actor."""
        assert len(self._asks) <= ASKS_MAX and len(self._deadlines) <= STALE_MAX + 2 * ASKS_MAX
        assert {(q.deadline, n) for n, q in self._asks.items()} <= set(self._deadlines)
        assert len(self.inputs) <= INPUTS_MAX and 0 <= self._input_bytes <= INPUTS_BYTES_MAX
        self.actor.check()

    def _is_me(self, e: Envelope) -> bool:
        """Whether this life is meant.  Incarnation 0 is whoever is there: a client asks the front
        desk so, since only there it learns of incarnations, and a host another one."""
        own = self.actor.address
        if e.sender.name == REMOTE_PEER:
            abroad = self.actor.abroad
            return abroad is not None and e.receiver in (abroad, ANY_PEER)
        if e.receiver == own:
            return True
        anyone = e.sender.name == CLIENT and e.receiver == FRONT_DESK
        return anyone and own.name == SUPERVISOR

    def _gone_step(self, e: Envelope, dead: Address, now: int) -> Step:
        assert e.sender.name == SUPERVISOR
        self._gone[dead] = None
        while len(self._gone) > GONE_MAX:
            self._gone.popitem(last=False)
        step = self._run(lambda: self.actor.receive(Sender(e.sender), e.message, now), now)
        for number in [n for n, q in self._asks.items() if q.to == dead]:
            self._end(number, NoAnswer(Status.PEER_GONE), now, step)
        return step

    def _answer(self, sender: Address, number: int, msg: Message, now: int) -> Step:
        question = self._asks.get(number)
        step = Step()
        if question is not None and question.to == sender:
            self._end(number, msg, now, step)
            return step
        self.actor.counts["answers_late"] += 1
        if sender.name != CLIENT:
            self._apply(self.actor.late(sender, msg, now), step, now)
        return step

    def _end(self, number: int, msg: Message, now: int, step: Step) -> None:
        question = self._asks.pop(number)
        self._apply(question.then(msg, now), step, now)

    def _run(self, call: Callable[[], list[Effect]], now: int) -> Step:
        step = Step()
        self._apply(call(), step, now)
        return step

    def _apply(self, effects: list[Effect], step: Step, now: int) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                step.envelopes.append(Envelope(self._own(effect.to), effect.to, effect.message))
            elif isinstance(effect, Reply):
                if effect.to.question:
                    self._count(effect, now)
                    to = effect.to.address
                    step.envelopes.append(
                        Envelope(self._own(to), to, effect.message, answer=effect.to.question)
                    )
            elif isinstance(effect, Ask):
                number, own = self._ask(effect), self._own(effect.to)
                deadline = effect.deadline if own == self.actor.address else 0
                step.envelopes.append(
                    Envelope(own, effect.to, effect.message, number, deadline=deadline)
                )
            elif isinstance(effect, Do):
                self._last += 1
                self._jobs[self._last] = type(effect.job), effect.then
                step.jobs.append((self._last, effect.job))
            elif isinstance(effect, Dial | Hangup | Rebind):
                step.links.append(effect)
            elif isinstance(effect, Note):
                step.notes.append(effect)
            elif isinstance(effect, Redeliver):
                self._apply(self.actor.receive(effect.sender, effect.message, now), step, now)
            else:
                step.stop = effect.reason

    def _own(self, to: Address) -> Address:
        """Our address in a message to this one."""
        if to.name not in (REMOTE_PEER, PEER_PLACE):
            return self.actor.address
        assert self.actor.abroad is not None, f"who speaks with {to} has a name between hosts"
        return self.actor.abroad

    def _count(self, answer: Reply, now: int) -> None:
        """A client has its answer."""
        to = answer.to
        if to.method:
            status: Status = getattr(answer.message, "status", Status.OK)
            took_us = max(0, now - to.asked_ns) // 1000
            series.RPC.count(self.actor.counts, took_us, _snake(to.method), status.label)

    def _ask(self, effect: Ask) -> int:
        assert len(self._asks) < ASKS_MAX, "too many outstanding questions"
        self._last += 1
        self._asks[self._last] = _Question(effect.to, effect.deadline, effect.then)
        heappush(self._deadlines, (effect.deadline, self._last))
        if len(self._deadlines) > STALE_MAX + 2 * len(self._asks):
            self._deadlines = [(q.deadline, n) for n, q in self._asks.items()]
            heapify(self._deadlines)
        return self._last

    def _due(self) -> tuple[int, int] | None:
        """The question that expires next: deadline and number.  An answer leaves its entry in the
        heap; it is taken out when it comes up, or with all others when they are too many."""
        deadlines, asks = self._deadlines, self._asks
        while deadlines and deadlines[0][1] not in asks:
            heappop(deadlines)
        return deadlines[0] if deadlines else None

    def _note(self, now: int, kind: Input, head: bytes, body: bytes) -> None:
        self.inputs.append((now, kind, head, body))
        self.input_count += 1
        self._input_bytes += len(head) + len(body)
        while len(self.inputs) > INPUTS_MAX or self._input_bytes > INPUTS_BYTES_MAX:
            _, _, head, body = self.inputs.popleft()
            self._input_bytes -= len(head) + len(body)


@cache
def _snake(name: str) -> str:
    """OpenSession as open_session; there are as many as there are kinds of questions."""
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
