"""A cage: one actor in its Host, fed with hostile frames the way the loop feeds it.

What comes from a hostile sender is anything at all; the other neighbours answer as they should, or
late, or never.  The supervisor and, among themselves, index and allocator are believed: whoever
cannot believe its own supervisor cannot live, and their contradictions are bugs of ours that end
the process.  Clients and sessions are not believed.

The cage counts what happened and asserts, beside the actor's own invariants, that no effect names a
page, slot or block that is not there and that no table grows without bound.
"""

import random
from collections import Counter, deque
from typing import Any

from pegaflow.actors.runtime.contract import Actor
from pegaflow.actors.runtime.host import Host, Step
from pegaflow.wire.control import Hello, Welcome
from pegaflow.wire.envelope import Envelope, pack, unpack
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.jobs import Done, Result, SetLog
from pegaflow.wire.message import Message, WireError
from pegaflow.wire.status import Status
from pegaflow.wire.values import ALLOCATOR, CLIENT, FRONT_DESK, INDEX, SESSION, SUPERVISOR, Address

from .hostile import EVERY_KIND, Generator, spoiled

MS = 1_000_000
PAGE = 16 * 1024
EXTENT = 8 * PAGE
POOL = 8 * EXTENT
HELLO = Hello(100, 200, "here")
WELCOME = Welcome("pool", "ledger", POOL, EXTENT, run_dir="run")
BOSS, ALLOC, IDX = (
    Address(SUPERVISOR, Incarnation(1)),
    Address(ALLOCATOR, Incarnation(2)),
    Address(INDEX, Incarnation(3)),
)
STRANGERS = (
    Address(SESSION, Incarnation(1 << 40)),
    Address(SUPERVISOR, Incarnation(77)),
    Address("nobody", Incarnation(1)),
    Address("", Incarnation(0)),
)
"""Senders that are not who the group knows: their frames change nothing."""

CHECK_EVERY = 64
"""Frames between two looks at all invariants."""

ENTRIES_MAX = 20_000
"""Most entries of any table: above each limit that an actor sets itself."""


class Cage:
    """One kind of actor.  Subclasses make it, say what makes sense, and do its jobs."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.generator = Generator(self.rng)
        self.now = 10_000 * MS
        self.counts: Counter[str] = Counter()  # what happened
        self.senders: list[Address] = []  # living hostile neighbours
        self.questions: deque[Envelope] = deque(maxlen=64)  # that the actor asked
        self.jobs: list[tuple[int, Message]] = []  # without an end yet
        self.host = Host(self.build())
        self.kinds: dict[str, list[type[Message]]] = {}  # what is accepted, by sender's name
        self.begin()

    # what a kind of actor fills in

    def build(self) -> Actor:
        """A fresh actor."""
        raise NotImplementedError

    def settle(self) -> None:
        """Bring the fresh actor to where it serves; teach the generator what makes sense."""

    def answer(self, question: Envelope) -> Message | None:
        """A sound answer of a neighbour that is believed; None if it is hostile itself."""
        return None

    def work(self, job: Message) -> Result | None:
        """Do a job; None: never."""
        return None

    def saw(self, envelope: Envelope) -> None:
        """Check an envelope that the actor sent."""

    def sizes(self) -> dict[str, int]:
        """How large the actor's tables are."""
        return {}

    def step(self) -> None:
        """Something that a believed neighbour does by itself."""

    # the cage

    def begin(self) -> None:
        """A new life of the actor."""
        self.jobs.clear()
        self.questions.clear()
        self.counts["lives"] += 1
        self.take(self.host.start(self.now))
        self.settle()
        names = (CLIENT, SESSION, INDEX, ALLOCATOR, SUPERVISOR)
        accepts = self.host.actor.accepts
        self.kinds = {n: [k for k in EVERY_KIND if accepts(k, n)] for n in names}

    def run(self, frames: int) -> Counter[str]:
        """Feed so many frames."""
        for number in range(1, frames + 1):
            self.one()
            if number % CHECK_EVERY == 0:
                self.check()
        self.check()
        return self.counts + self.host.actor.counts

    def one(self) -> None:
        """One frame, and whatever else is due."""
        rng = self.rng
        self.now += rng.choice((0, 1, 1000, MS // 10, MS, MS, 5 * MS))
        if rng.random() < 0.0005:
            self.now += rng.choice((1000, 4000, 200_000)) * MS
        sender = rng.choice(self.senders if rng.random() < 0.95 else STRANGERS)
        kinds = self.kinds.get(sender.name)
        kind = rng.choice(kinds if kinds and rng.random() < 0.95 else EVERY_KIND)
        msg = self.generator.message(kind)
        if rng.random() < 0.1:
            self.generator.learn(msg)
        question = rng.randrange(1, 1 << 32) if rng.random() < 0.8 else 0
        answer = 0
        if not question and rng.random() < 0.2:
            answer = rng.randrange(1, 1 << 16)
        deadline = rng.choice((0, 0, self.now - 1, self.now + 500 * MS, (1 << 64) - 1))
        to = self.host.actor.address if rng.random() < 0.99 else FRONT_DESK
        frames = pack(Envelope(sender, to, msg, question, answer=answer, deadline=deadline))
        if rng.random() < 0.15:
            frames = spoiled(frames, rng)
        self.deliver(frames, sender)
        if rng.random() < 0.05:
            self.step()
        self.pass_time()

    def deliver(self, frames: list[bytes], sender: Address) -> None:
        """What the loop does with frames from a peer of this address."""
        self.counts["frames"] += 1
        try:
            envelope = unpack(frames)
            if envelope.sender != sender:
                raise WireError("the sender is not who it says")
        except WireError:
            self.counts["frames_bad"] += 1
            return
        self.take(self.host.deliver(envelope, self.now, frames))

    def tell(
        self, sender: Address, msg: Message, question: int = 0, answer: int = 0, patience: int = 0
    ) -> None:
        """A frame of a believed neighbour; `patience` in nanoseconds, 0: any."""
        deadline = self.now + patience if patience else 0
        envelope = Envelope(
            sender, self.host.actor.address, msg, question, answer=answer, deadline=deadline
        )
        self.take(self.host.deliver(envelope, self.now, pack(envelope)))

    def pass_time(self) -> None:
        """Wake the actor, answer a question, end a job."""
        due = self.host.wake_at()
        if due is not None and due <= self.now:
            self.take(self.host.wake(self.now))
        while self.questions and self.rng.random() < 0.6:
            question = self.questions.popleft()
            msg = self.answer(question)
            if msg is not None and self.rng.random() < 0.97:
                self.generator.learn(msg)
                self.tell(question.receiver, msg, answer=question.question)
        while self.jobs and self.rng.random() < 0.7:
            number, job = self.jobs.pop(0)
            result = Done(Status.NO_SPACE) if isinstance(job, SetLog) else self.work(job)
            if result is not None:
                self.take(self.host.complete(number, result, self.now))

    def take(self, step: Step) -> None:
        """Carry out a step."""
        for envelope in step.envelopes:
            unpack(pack(envelope))
            self.counts["answers" if envelope.answer else "sent"] += 1
            self.generator.learn(envelope.message)
            self.saw(envelope)
            if envelope.question:
                self.questions.append(envelope)
        self.jobs += step.jobs
        if step.stop is not None:
            assert step.stop == "", step.stop
            self.reborn()

    def reborn(self) -> None:
        """The next actor; what this one has counted is kept."""
        self.counts += self.host.actor.counts
        self.host = Host(self.build())
        self.begin()

    def check(self) -> None:
        """All invariants, and that nothing grows without bound."""
        self.host.check()
        asks, jobs = self.host.outstanding()
        sizes: dict[str, Any] = {"asks": asks, "jobs": jobs, **self.sizes()}
        for name, size in sizes.items():
            assert size <= ENTRIES_MAX, f"{name} has {size} entries"
            self.counts[f"most_{name}"] = max(self.counts[f"most_{name}"], size)
