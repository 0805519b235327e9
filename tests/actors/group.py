"""A supervisor with its children: jobs are done as soon as they are asked for."""

from pegaflow.actors.supervisor.actor import Supervisor
from pegaflow.actors.supervisor.plan import Plan
from pegaflow.actors.supervisor.ticks import TICK_NS
from pegaflow.wire.control import (
    Beat,
    Hello,
    Inspect,
    OpenSession,
    Report,
    Serve,
    Serving,
    SessionAt,
)
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import EngineNamespace, Incarnation
from pegaflow.wire.jobs import (
    Announce,
    CheckFiles,
    Exited,
    FilesChecked,
    IncarnationDrawn,
    Kill,
    Look,
    Looked,
    NextIncarnation,
    OpenPool,
    PoolOpened,
    Spawn,
    Spawned,
    ThreadState,
)
from pegaflow.wire.values import FRONT_DESK, Address

from .rig import BOSS, CLIENT_7, CLIENT_8, EXTENT, POOL, Rig, one, said

PLAN = Plan(1, "run", "0.1")
OPENED = PoolOpened("pool", "ledger", POOL, EXTENT, pool_file=(), ledger_file=())
OPEN = OpenSession("engine", bytes(16), 4242, 99, namespace=EngineNamespace(bytes(16)))


class Group(Rig):
    """A supervisor whose jobs are done as soon as they are asked for; children say Hello."""

    def __init__(self, plan: Plan = PLAN, opened: PoolOpened = OPENED) -> None:
        super().__init__(Supervisor(BOSS, plan))
        self.incarnation = BOSS.incarnation
        self.living: list[Address] = []
        self.killed: list[Address] = []
        self.waited: dict[Address, int] = {}  # nanoseconds that a silent child waited for a core
        self.announced: list[str] = []  # to the service manager
        self.opened = opened  # what OpenPool gives
        self.faults: list[str] = []  # what a look at the service's files finds
        self.lost: tuple[Incarnation, ...] = ()  # incarnations of children whose socket is gone
        self.start()
        self.settle()

    @property
    def boss(self) -> Supervisor:
        assert isinstance(self.host.actor, Supervisor)
        return self.host.actor

    @property
    def stopped(self) -> bool:
        """Whether the service has ended cleanly."""
        return self.stop == ""

    def settle(self) -> list[Envelope]:
        """Do all jobs; new children come up."""
        sent: list[Envelope] = []
        while self.jobs:
            job = self.jobs[0][1]
            if isinstance(job, OpenPool):
                sent += self.done(OpenPool, self.opened)
            elif isinstance(job, NextIncarnation):
                self.incarnation = Incarnation(self.incarnation + 1)
                sent += self.done(NextIncarnation, IncarnationDrawn(self.incarnation))
            elif isinstance(job, Spawn):
                self.living.append(job.address)
                sent += self.done(Spawn, Spawned(1000 + job.address.incarnation, 1))
                sent += self.tell(job.address, Hello(1, 1, f"ipc://{job.address}"))
            elif isinstance(job, Look):
                waited = self.waited.get(job.address, 0)
                sent += self.done(Look, Looked(waited, 0, self.now, ThreadState.SLEEPING))
            elif isinstance(job, Announce):
                self.announced.append(job.lines)
                sent += self.done(Announce)
            elif isinstance(job, CheckFiles):
                sent += self.done(CheckFiles, FilesChecked(tuple(self.faults), self.lost))
            else:
                assert isinstance(job, Kill)
                self.killed.append(job.address)
                sent += self.done(Kill)
        return sent

    def names(self) -> list[str]:
        """The living children, in order of birth."""
        return [address.name for address in self.living]

    def report(self) -> Report:
        """What it answers to Inspect."""
        return said(self.ask(CLIENT_8, Inspect(), to=FRONT_DESK), Report)

    def sums(self, name: str) -> dict[str, int]:
        """The counters of a kind of child over all its lives."""
        (kind,) = [k for k in self.report().kinds if k.name == name]
        return {c.name: c.value for c in kind.counters}

    def now_living(self, name: str) -> Address:
        """The only child of this name."""
        (address,) = [a for a in self.living if a.name == name]
        return address

    def exit(self, address: Address) -> list[Envelope]:
        """A child dies, and everything is done that follows at once."""
        self.living.remove(address)
        return self.inform(Exited(address, 256 + 9)) + self.settle()

    def open(
        self, msg: OpenSession = OPEN, client: Address = CLIENT_7, remote: bool = False
    ) -> list[Envelope]:
        return self.ask(client, msg, to=FRONT_DESK, remote=remote) + self.settle()

    def beats(self, nanoseconds: int, silent: Address | None = None) -> list[Envelope]:
        """Let time pass with all children beating but one."""
        sent: list[Envelope] = []
        for _ in range(nanoseconds // TICK_NS):
            sent += self.wait(TICK_NS)
            for child in self.living:
                if child != silent:
                    sent += self.tell(child, Beat(()))
        return sent + self.settle()

    def serve(self) -> Address:
        """An engine with its session."""
        sent = self.open()
        return said(self.answer(one(sent, Serve), Serving()), SessionAt, CLIENT_7).address
