"""A client's machine in an engine that uses it, with a session and a front desk that are hostile.

Half of the time the other side answers as it should: else nothing is ever attached.  What the
machine wants done is done here, as far as it can be done without a process: and it must be possible
(a copy names blocks of its operation and as many places, a proof fits its scratch memory), each
started operation must end once, and nothing may outlive its deadline by more than the grace.
"""

import random
from collections import Counter
from dataclasses import replace
from typing import Any

from pegaflow.client.effects import (
    CopyIn,
    CopyOut,
    DialSession,
    Effect,
    Finish,
    Identity,
    KillSession,
    MapFiles,
    Memory,
    ToDesk,
    ToSession,
    WriteProof,
)
from pegaflow.client.machine import Machine, State
from pegaflow.client.patience import GRACE_NS
from pegaflow.client.results import Chain, Lease, LoadDone, LookupDone
from pegaflow.wire.control import OpenSession, SessionAt
from pegaflow.wire.envelope import Envelope, pack, unpack
from pegaflow.wire.gpu import HANDLE_BYTES, NO_GPU, GpuMemory, GpuRegion
from pegaflow.wire.identities import Incarnation, LeaseId, Namespace
from pegaflow.wire.layout import LayerLayout, Layout
from pegaflow.wire.message import Message, WireError
from pegaflow.wire.session import (
    PROOF_BYTES,
    Attach,
    Attached,
    Confirmed,
    Copied,
    CopyBatch,
    Found,
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
    Save,
    Saved,
    Way,
)
from pegaflow.wire.status import Status
from pegaflow.wire.values import CLIENT, SESSION, SUPERVISOR, Address
from tests.naming import MODEL, as_keys

from .hostile import EVERY_KIND, Generator, spoiled

MS = 1_000_000
ME, DESK = Address(CLIENT, Incarnation(7)), Address(SUPERVISOR, Incarnation(1))
LAYOUT = Layout(64, (LayerLayout(0, 0, 64, 64),), "uint8")
HANDLE = bytes(HANDLE_BYTES)
GPU = GpuMemory("0000:65:00.0", bytes(16), (GpuRegion(HANDLE, 0),), HANDLE)
TOLD = (Found, Pages, Confirmed, Loaded, Saved, CopyBatch, Attached, Prove, Pong, Left, SessionAt)
"""What a client listens to."""

OPEN_MAX = 4096
"""Most questions of one client: what the engine has under way, and a few more."""


class ClientCage:
    """One client; the name of a method says who acts."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.generator = Generator(self.rng)
        self.counts: Counter[str] = Counter()
        self.now = 10_000 * MS
        self.way = self.rng.choice((Way.STAGED, Way.PROCESS_VM))
        self.gpu = self.rng.choice((NO_GPU, GPU))
        self.machine = Machine(
            Identity(ME, "engine", bytes(16), MODEL, probe=b"", world=1, pid=4242, started_ticks=99)
        )
        self.open: dict[int, tuple[Any, int]] = {}  # ticket -> what was asked, deadline
        self.questions: list[Envelope] = []  # that the machine asked, newest last
        self.leases: list[Lease] = []
        self.sessions = 0
        self._register()

    def run(self, frames: int) -> Counter[str]:
        """Feed so many frames."""
        for _ in range(frames):
            self.one()
        self.silence()
        return self.counts

    def one(self) -> None:
        """One frame, and what the engine does meanwhile."""
        self.now += self.rng.choice((0, 1000, MS, 5 * MS))
        if self.rng.random() < 0.3:
            self.engine_calls()
        if self.questions and self.rng.random() < 0.7:
            self.neighbour_answers()
        self.hostile_speaks()
        self.pass_time()

    def silence(self) -> None:
        """Nobody answers any more: everything ends."""
        for _ in range(200):
            self.now += 100 * MS
            self.pass_time()
            if self.machine.state is State.DYING:
                self.do(self.machine.session_died(self.now))
        assert not self.open, f"{len(self.open)} operations never end"

    def pass_time(self) -> None:
        machine = self.machine
        due = machine.wake_at()
        if due is not None and due <= self.now:
            self.do(machine.wake(self.now))
        if machine.state is State.DYING and self.rng.random() < 0.1:
            self.do(machine.session_died(self.now))
        assert len(machine.link) < OPEN_MAX and len(machine.operations.open) == len(self.open)
        for ticket, (_, deadline) in self.open.items():
            direct = machine.operations.open[ticket].direct
            late = self.now - deadline
            assert direct or late <= GRACE_NS + 5 * MS, f"{late} ns late, nobody writes our blocks"

    def engine_calls(self) -> None:
        rng, machine = self.rng, self.machine
        deadline = self.now + rng.choice((1, 10, 100, 1000)) * MS
        keys = self.generator._keys(rng.randrange(1, 5))
        blocks = tuple(rng.sample(range(LAYOUT.blocks), len(keys)))
        call = rng.randrange(12)
        if call < 5:
            self._started(keys, deadline, *machine.operations.lookup(as_keys(*keys), deadline))
        elif call < 8 and self.leases:
            lease = self.leases.pop()
            count = rng.randrange(1, lease.blocks + 1)
            ids = tuple(range(count))
            self._started(
                ids, deadline, *machine.operations.load(lease, ids, 0, deadline, now=self.now)
            )
        elif call < 10:
            valid = rng.choice((True, True, True, False))
            chain = Chain(as_keys(*keys), blocks, valid=lambda: valid)
            started = machine.operations.save([chain], deadline)
            self._started(blocks, deadline, *started)
        elif call == 10 and self.open:
            self.do(machine.operations.drop(rng.choice(list(self.open))))
        elif self.leases:
            self.do(machine.operations.release(self.leases.pop()))
        if rng.random() < 0.002:
            self.do(machine.leave(self.now, for_good=False))
        if machine.operations.memory is None and machine.state is State.LOST:
            self._register()

    def _register(self) -> None:
        memory = Memory(0, LAYOUT, (64 * 64,), self.way, bases=(1 << 40,), scratch=1 << 41)
        self.do(self.machine.register(replace(memory, gpu=self.gpu)))

    def _started(self, asked: Any, deadline: int, ticket: int, effects: list[Effect]) -> None:
        self.open[ticket] = (asked, deadline)
        self.counts["operations"] += 1
        self.do(effects)

    def neighbour_answers(self) -> None:
        """A question gets the answer that it should get."""
        question = self.questions.pop(self.rng.randrange(len(self.questions)))
        msg = self.sound(question.message)
        if msg is None:
            return
        self.generator.learn(msg, sound=True)
        sender = DESK if isinstance(question.message, OpenSession) else question.receiver
        self.hear(Envelope(sender, ME, msg, answer=question.question))

    def sound(self, asked: Message) -> Message | None:
        """The answer to this."""
        rng = self.rng
        if isinstance(asked, OpenSession):
            self.sessions += 1
            return SessionAt(Address(SESSION, Incarnation(100 + self.sessions)), "there", 4711)
        if isinstance(asked, Lookup):
            blocks = rng.randrange(len(asked.keys) + 1)
            return Found(Status.OK, LeaseId(self.sessions * 1000 + rng.randrange(100)), blocks)
        on_gpu = isinstance(asked, Attach) and bool(asked.gpu.regions)
        if isinstance(asked, Attach) and asked.way is not Way.STAGED and not on_gpu:
            return Prove(bytes(PROOF_BYTES))
        if isinstance(asked, Attach | Proven):
            way = Way.PROCESS_VM if isinstance(asked, Proven) else Way.STAGED
            way = Way.CUDA_IPC if on_gpu else way
            return Attached(
                "pool",
                1 << 20,
                "bounce",
                8,
                page_size=4096,
                namespace=Namespace(bytes(16)),
                loads=way,
                saves=way,
            )
        if isinstance(asked, Load):
            if asked.blocks:
                return Loaded(Status.OK)
            return Pages(Status.OK, rng.randrange(1, 100), tuple(range(asked.count)))
        if isinstance(asked, Save):
            return Saved(Status.OK, len(asked.keys), 0)
        fixed = {Ping: Pong(), Leave: Left(), Copied: Confirmed(Status.OK)}
        return fixed.get(type(asked))

    def hostile_speaks(self) -> None:
        """A frame with anything in it, mostly in the name of the session or the front desk."""
        rng = self.rng
        others = (DESK, Address(SESSION, Incarnation(1)), Address("nobody", Incarnation(0)))
        sender = self.machine.link.session if rng.random() < 0.8 else rng.choice(others)
        kind = rng.choice(TOLD if rng.random() < 0.9 else EVERY_KIND)
        msg = self.generator.message(kind)
        if isinstance(msg, CopyBatch) and self.open and rng.random() < 0.8:
            msg = CopyBatch(rng.choice(list(self.open)), msg.batch, msg.positions, msg.slots)
        answer = 0
        if rng.random() < 0.4 and self.questions:
            answer = rng.choice(self.questions).question
        elif rng.random() < 0.3:
            answer = rng.randrange(1, 1 << 16)
        frames = pack(Envelope(sender, ME, msg, answer=answer))
        if rng.random() < 0.15:
            frames = spoiled(frames, rng)
        self.counts["frames"] += 1
        try:
            envelope = unpack(frames)
        except WireError:
            self.counts["frames_bad"] += 1
            return
        self.hear(envelope)

    def hear(self, envelope: Envelope) -> None:
        """As the shell does it."""
        self.do(self.machine.receive(envelope, self.now))

    def do(self, effects: list[Effect]) -> None:
        """Carry out what the machine wants."""
        machine = self.machine
        for effect in effects:
            if isinstance(effect, ToDesk | ToSession):
                unpack(pack(effect.envelope))
                if effect.envelope.question:
                    self.questions = [*self.questions[-16:], effect.envelope]
            elif isinstance(effect, Finish):
                self.finished(effect.done)
            elif isinstance(effect, DialSession):
                self.do(machine.dialled(self.rng.random() < 0.8, self.now))
            elif isinstance(effect, MapFiles):
                self.do(machine.mapped(self.rng.random() < 0.9, "no", self.now))
            elif isinstance(effect, WriteProof):
                assert len(effect.proof) == PROOF_BYTES
            elif isinstance(effect, CopyIn):
                asked, _ = self.open[effect.ticket]
                assert effect.blocks == asked and len(effect.offsets) == len(asked)
                self.counts["copies"] += 1
                self.do(
                    machine.operations.copied_in(effect.ticket, self.rng.random() < 0.9, self.now)
                )
            elif isinstance(effect, CopyOut):
                asked, _ = self.open[effect.ticket]
                assert set(effect.blocks) <= set(asked) and len(effect.slots) == len(effect.blocks)
                self.counts["copies"] += 1
                ok = self.rng.random() < 0.9
                self.do(machine.operations.copied_out(effect.ticket, effect.batch, ok, self.now))
            elif isinstance(effect, KillSession):
                self.counts["kills"] += 1

    def finished(self, done: Any) -> None:
        """An operation ended: once, and with nothing that the engine did not ask for."""
        asked, _ = self.open.pop(done.ticket)
        self.counts[f"ended_{done.status.name.lower()}"] += 1
        if isinstance(done, LookupDone):
            assert done.blocks <= len(asked) and bool(done.lease) == bool(done.blocks)
            if done.lease is not None:
                assert done.lease.blocks == done.blocks
                self.leases = [*self.leases[-16:], done.lease]
        elif isinstance(done, LoadDone):
            assert done.failed == (() if done.status is Status.OK else asked)
