"""A supervisor among hostile clients and children, and a gateway that shows what they say."""

import json
from dataclasses import replace

from pegaflow.actors.gateway.actor import Gateway
from pegaflow.actors.supervisor.actor import Supervisor
from pegaflow.actors.supervisor.children import ChildRecord, ChildState
from pegaflow.actors.supervisor.plan import Plan
from pegaflow.observe import metrics
from pegaflow.wire.control import Beat, Hello, OpenSession, ProcessRow, Report, Serving, SessionAt
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import EngineNamespace, Incarnation
from pegaflow.wire.jobs import (
    Announce,
    CheckFiles,
    Done,
    Exited,
    FilesChecked,
    IncarnationDrawn,
    Kill,
    Listen,
    Listening,
    Look,
    Looked,
    NextIncarnation,
    OpenPool,
    PoolOpened,
    Publish,
    Result,
    Spawn,
    Spawned,
    ThreadState,
)
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.values import CLIENT, GATEWAY, SESSION, Address

from .cage import ALLOC, BOSS, EXTENT, HELLO, IDX, MS, POOL, WELCOME, Cage
from .hostile import EVERY_KIND


class SupervisorCage(Cage):
    """A supervisor: clients are hostile and so are its children; the jobs are done."""

    def build(self) -> Supervisor:
        self.incarnation = 1
        self.living: list[Address] = []
        return Supervisor(BOSS, Plan(2, "run", "0.1"))

    def settle(self) -> None:
        self.senders = [Address(CLIENT, Incarnation(n)) for n in (7, 7, 8, 9)]
        self.generator.addresses = [*self.senders, BOSS, ALLOC, IDX]
        sound = OpenSession("engine", bytes(16), 4242, 99, namespace=EngineNamespace(bytes(16)))
        self.generator.learn(sound, sound=True)

    def work(self, job: Message) -> Result:
        if isinstance(job, OpenPool):
            return PoolOpened("pool", "ledger", POOL, EXTENT, pool_file=(), ledger_file=())
        if isinstance(job, NextIncarnation):
            self.incarnation += 1
            return IncarnationDrawn(Incarnation(self.incarnation))
        if isinstance(job, Spawn):
            self.living.append(job.address)
            return Spawned(1000 + job.address.incarnation, 1)
        if isinstance(job, Announce):
            return Done(Status.OK)
        if isinstance(job, CheckFiles):
            return FilesChecked((), ())
        if isinstance(job, Look):
            return Looked(0, 0, self.now, ThreadState.SLEEPING)
        assert isinstance(job, Kill)
        if job.address in self.living:
            self.exit(job.address)
        return Done(Status.OK)

    def exit(self, address: Address, code: int = 265) -> None:
        self.living.remove(address)
        self.take(self.host.inform(Exited(address, code), self.now))

    def step(self) -> None:
        """Children say Hello and Beat; who said Bye ends soon; now and then one dies."""
        for address in list(self.living):
            child = self.supervisor.children.get(address)
            if child is not None and not child.endpoint:
                self.tell(address, Hello(1, 1, str(address)))
            elif child is not None and self._ends(child):
                self.exit(address, 0)
            else:
                self.tell(address, Beat(()))
        self.senders[4:] = self.living
        if self.living and self.rng.random() < 0.01:
            self.exit(self.rng.choice(self.living))

    def _ends(self, child: ChildRecord) -> bool:
        return child.state is ChildState.DRAINING and self.rng.random() < 0.3

    @property
    def supervisor(self) -> Supervisor:
        actor = self.host.actor
        assert isinstance(actor, Supervisor)
        return actor

    def answer(self, question: Envelope) -> Message | None:
        return Serving()

    def saw(self, envelope: Envelope) -> None:
        self.counts["engines_served"] += isinstance(envelope.message, SessionAt)

    def sizes(self) -> dict[str, int]:
        return {"children": len(self.supervisor.children), "opens": len(self.supervisor.opens)}


class GatewayCage(Cage):
    """A gateway: nobody but the supervisor is heard, and what its children say of themselves, which
    stands in its reports, is anything at all; every report is rendered as the HTTP side does it."""

    def build(self) -> Gateway:
        return Gateway(Address(GATEWAY, Incarnation(5)), BOSS, HELLO)

    def settle(self) -> None:
        self.senders = [
            Address(CLIENT, Incarnation(7)),
            Address(SESSION, Incarnation(4)),
            IDX,
            ALLOC,
        ]
        self.tell(BOSS, replace(WELCOME, http_addr="127.0.0.1:0"))

    def one(self) -> None:
        super().one()
        self.now += 10 * MS  # it asks every second

    def answer(self, question: Envelope) -> Message | None:
        kind = Report if self.rng.random() < 0.9 else self.rng.choice(EVERY_KIND)
        msg = self.generator.message(kind)
        if isinstance(msg, Report):  # the supervisor itself stands first
            own = ProcessRow(BOSS, 1, "up", 0, engine="", counters=())
            return replace(msg, processes=(own, *msg.processes))
        return msg

    def work(self, job: Message) -> Result:
        if isinstance(job, Listen):
            if self.rng.random() < 0.5:
                return Done(Status.NO_SPACE, "in use")
            return Listening("127.0.0.1:5", 5)
        assert isinstance(job, Publish)
        body = metrics.render(job.report, self.now)
        assert all(line.startswith((b"#", b"p")) for line in body.splitlines()), body
        json.dumps(metrics.status(job.report, self.now))
        self.counts["reports_rendered"] += 1
        return Done(Status.OK)
