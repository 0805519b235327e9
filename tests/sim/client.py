"""A client's process: the client state machine, and what client.py does for it.

It sends, maps, watches and kills, and copies by itself, a piece at a time, and hears of nothing
else until a copy is over.  It also holds the memory that a session may reach: `reach` and `judge`
are where the fake device of a session knocks, and where a byte that moves too late is seen.
"""

from collections import deque
from collections.abc import Callable

from pegaflow.client.effects import (
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
    WriteProof,
)
from pegaflow.client.finding import Finding
from pegaflow.client.machine import Machine, State
from pegaflow.client.results import Done, LoadDone, LookupDone, SaveDone
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.gpu import HANDLE_BYTES, NO_GPU
from pegaflow.wire.identities import NO_NAMESPACE, EngineNamespace, Incarnation
from pegaflow.wire.layout import LayerLayout, Layout
from pegaflow.wire.session import Attached, Way
from pegaflow.wire.status import Status
from pegaflow.wire.values import CLIENT, Address

from .books import Books, Operation, Role, content
from .files import Files, Lender, copy_pieces
from .gpu import Kernels, named
from .world import MS, US, Call, Link, Proc, World

BLOCKS = 28
"""Blocks of one engine: a few requests at a time."""

REGION = 1 << 24
"""Distance from the address of one registered region of a process to that of the next."""


class Client(Proc):
    """One client process."""

    def __init__(self, world: World, files: Files, books: Books, role: Role) -> None:
        super().__init__(world, Address(CLIENT, Incarnation(world.rng.getrandbits(63) | 1)))
        self.files, self.books, self.role, self.size = files, books, role, role.size
        self.machine = Machine(
            Identity(
                address=self.address,
                engine=role.engine,
                generation=role.generation,
                namespace=EngineNamespace(b"model".ljust(16)),
                probe=b"",
                world=role.world,
                pid=self.pid,
                started_ticks=self.started_ticks,
                opens=role.opens,
            ),
            busy=lambda: self._pidfd is not None and self._pidfd.has_no_core,
        )
        self.finding = Finding(self.machine, Lender(world, files).lend)
        self.open: dict[int, Operation] = {}  # by ticket
        self.memory = bytearray()
        self.base = 0  # address of `memory`; 0: none is registered
        self.kernels = Kernels(world) if role.gpu >= 0 else None  # where the memory is on a GPU
        self._users: set[Proc] = set()  # who has it open there
        self.left: set[int] = set()  # addresses that nobody touches any more, by the session's word
        self.lent: set[int] = set()  # blocks that the session may write
        self.scratch = bytearray()
        self.namespace = NO_NAMESPACE
        self._regions = 0
        self._pool = ("", bytearray())  # path and bytes
        self._bounce = bytearray()
        self._slot_bytes = 0
        self._effects: deque[Effect] = deque()  # of the machine, not carried out yet
        self._calls: deque[Call] = deque()  # inputs that wait for a copy to end
        self._waiting: deque[Call] = deque()  # calls of the engine that wait for the goodbye's end
        self._goodbye: Call | None = None  # what to do once the session is left
        self._copying = False
        self._session: Link | None = None
        self._pidfd: Proc | None = None  # what we believe to be the session's process
        if role.rank is not None:
            self.register()
        self.input(lambda: None)

    # what the engine does with it

    def do(self, call: Call) -> None:
        """A call of the engine: between two copies, for the client has one thread."""
        self._waiting.append(call)
        self.quietly(lambda: None)

    def register(self) -> None:
        """Name new memory."""
        assert self.role.rank is not None and not self.base
        self._regions += 1
        self.base = self._regions * REGION
        self.memory, self.scratch = bytearray(BLOCKS * self.size), bytearray(32)
        layout = Layout(BLOCKS, (LayerLayout(0, 0, self.size, self.size),), "uint8", "sim")
        way, scratch, gpu = self.role.way, self.base - 64, NO_GPU
        bases: tuple[int, ...] = (self.base,)
        if self.kernels is not None:
            way, bases, scratch = Way.STAGED if way is Way.STAGED else Way.AUTO, (), 0
            handle = self.world.chips.randbytes(HANDLE_BYTES)
            self.world.handles[handle] = self
            gpu = named(handle, self.role.gpu)
        sizes = (len(self.memory),)
        self._run(
            self.machine.register(
                Memory(
                    rank=self.role.rank,
                    layout=layout,
                    region_bytes=sizes,
                    way=way,
                    bases=bases,
                    scratch=scratch,
                    replicas=self.role.replicas,
                    gpu=gpu,
                )
            )
        )

    def unregister(self) -> None:
        """Give the memory up, and name other memory some time later."""
        if not self.base:
            return
        mapped = self.machine.state is State.READY
        base = self.base

        def freed() -> None:
            self.world.note(self.address, "frees its memory")
            if mapped:
                self.left.add(base)
            self.base = 0
            self.memory = bytearray()
            assert not self.lent, "freed while the session may write"
            assert not self._users, f"{self.address}: freed while others have it open"
            delay = self.world.between(0, 100_000 * US)
            self.after(delay, lambda: self.do(self.register))

        self._say_goodbye(False, freed)

    def leave(self) -> None:
        """Close the client and end."""
        self._say_goodbye(True, lambda: self.die("leaves"))

    def start(self, ticket: int, operation: Operation, effects: list[Effect]) -> None:
        """An operation has begun."""
        assert ticket not in self.open
        self.open[ticket] = operation
        self.books.started += 1
        self.world.note(self.address, f"{operation.kind} {ticket} of {len(operation.keys)} blocks")
        begun = self.machine.operations.open.get(ticket)
        if begun is not None and begun.direct:
            self.lent.update(operation.blocks)
        if self.kernels is not None:
            self.kernels.record()
        self._run(effects)

    def drop(self, ticket: int) -> None:
        """Give a save up."""
        self._run(self.machine.operations.drop(ticket))

    def run(self, effects: list[Effect]) -> None:
        """Carry out what a call of the machine has led to."""
        self._run(effects)

    def write(self, block: int, data: bytes) -> None:
        """The engine computes: at once, or when its kernels get there."""
        memory, there = self.memory, slice(block * self.size, (block + 1) * self.size)

        def compute() -> None:
            memory[there] = data

        if self.base and self.kernels is not None:
            self.kernels.launch(compute)
        elif self.base:
            compute()

    def spoil(self, blocks: tuple[int, ...]) -> None:
        """The engine uses these blocks for something else."""
        for block in blocks:
            self.write(block, self.world.rng.randbytes(8) * (self.size // 8))

    # what a session's process finds here

    def reach(self, base: int) -> bytearray | None:
        """Memory at this address; None where nothing is mapped."""
        assert base not in self.left, f"{self.address}: memory is touched after Left"
        return self.memory if base == self.base else None

    def opened_by(self, session: Proc) -> bytearray:
        """A session opens our memory on the GPU."""
        self._users.add(session)
        return self.memory

    def closed_by(self, session: Proc) -> None:
        """It has closed it, or is gone with its devices."""
        self._users.discard(session)

    def judge(self, block: int) -> None:
        """A session is about to write this block."""
        assert block in self.lent, f"{self.address}: block {block} is written after its load's end"

    # what the process does

    def quietly(self, call: Call) -> None:
        """Do this between two copies."""
        self._calls.append(call)
        while self._calls and not self._busy and self.alive:
            self._calls.popleft()()
            self._look_around()

    def _look_around(self) -> None:
        """Go on with the engine's calls, one goodbye after the other."""
        while not self._busy and self.alive:
            if self._goodbye is not None:
                if self.machine.state.is_going:
                    return
                then, self._goodbye = self._goodbye, None
                then()
            elif self._waiting:
                self._waiting.popleft()()
            else:
                return

    def _say_goodbye(self, for_good: bool, then: Call) -> None:
        self._goodbye = then
        self._run(self.finding.leave(self.world.now))
        self._run(self.machine.leave(self.world.now, for_good))

    @property
    def _busy(self) -> bool:
        return self._copying or bool(self._effects)

    def on_envelope(self, envelope: Envelope, frames: list[bytes]) -> None:
        """A message for the machine."""
        self.quietly(lambda: self._run(self.machine.receive(envelope, self.world.now)))

    def wake_at(self) -> int | None:
        """The machine's and the finding's, once it looks."""
        times = (self.machine.wake_at(), self.finding.wake_at())
        return None if self._busy else min((t for t in times if t is not None), default=None)

    def wake(self) -> None:
        """Theirs."""
        self.quietly(lambda: self._run(self.machine.wake(self.world.now)))
        self.quietly(lambda: self._run(self.finding.wake(self.world.now)))

    def die(self, why: str) -> None:
        """Whatever is open has no end any more, and needs none."""
        self.books.abandoned += len(self.open)
        self.open.clear()
        if self.kernels is not None:
            self.kernels.stop()
        super().die(why)

    def check(self) -> None:
        """Every operation that is open here is open in the machine, and the reverse; without a
        session nobody has our memory open, for we might free it."""
        without = self.machine.state in (State.LOST, State.OPENING)
        assert not (without and self._users), f"{self.address}: others have its memory open"
        if self.alive and not self._busy:
            assert self.open.keys() == self.machine.operations.open.keys(), "an operation was lost"

    @property
    def served(self) -> bool:
        """Whether a session serves this client and nothing is open."""
        return self.machine.state is State.READY and not self.open

    def _run(self, effects: list[Effect]) -> None:
        """Carry out effects in their order; a copy makes the rest wait."""
        self._effects.extendleft(reversed(effects))
        while self._effects and not self._copying:
            self._carry_out(self._effects.popleft())

    def _carry_out(self, effect: Effect) -> None:
        if isinstance(effect, Finish):
            self._finish(effect.done)
        elif isinstance(effect, DialSession):
            self._dial_session(effect)
        elif isinstance(effect, HangUp):
            self._hang_up_session()
        elif isinstance(effect, KillSession):
            self._kill_session()
        elif isinstance(effect, WriteProof):
            self.scratch[:] = effect.proof
        elif isinstance(effect, MapFiles):
            self._map(effect.attached)
        elif isinstance(effect, CopyIn):
            self._copy_in(effect)
        elif isinstance(effect, CopyOut):
            self._copy_out(effect)
        elif isinstance(effect, ToDesk):
            self.world.send(self, effect.envelope, self.dial(effect.envelope.receiver))
        elif self._session is not None:
            self.world.send(self, effect.envelope, self._session)

    def _dial_session(self, effect: DialSession) -> None:
        self._hang_up_session()
        link = self._session = self.dial(effect.address)
        proc = self.world.by_pid.get(effect.pid)

        def dead() -> None:
            if self._session is link:
                self._run(self.machine.session_died(self.world.now))

        if proc is not None and proc.alive and self.world.rng.random() < 0.9:
            self._pidfd = proc
            proc.watch(lambda: self.input(lambda: self.quietly(dead)))
        self._run(self.machine.dialled(self._pidfd is not None, self.world.now))

    def _kill_session(self) -> None:
        victim, link = self._pidfd, self._session
        assert victim is not None and link is not None
        assert victim.address == link.target, f"{victim.address} is killed for {link.target}"
        self.world.counts["killed by a client"] += 1
        self.world.at(self.world.now + self.world.delay(), lambda: victim.die("killed by a client"))

        def halted() -> None:
            dying = self.machine.state is State.DYING and not self.machine.by_gpu
            if self._session is link and dying:
                self._run(self.machine.session_died(self.world.now))

        victim.watch_threads(lambda: self.input(lambda: self.quietly(halted)))

    def _hang_up_session(self) -> None:
        if self._session is not None:
            self.hang_up(self._session.target)
        self._session = self._pidfd = None

    def _map(self, attached: Attached) -> None:
        named = self.files.named
        pool, bounce = named.get(attached.pool_path), named.get(attached.bounce_path)
        gone = (pool is None and attached.loads is Way.STAGED) or (
            bounce is None and attached.saves is Way.STAGED
        )
        if gone:
            self._run(self.machine.mapped(False, "no such file", self.world.now))
            return
        self._pool, self._bounce = (
            (attached.pool_path, pool or self._pool[1]),
            bounce or bytearray(),
        )
        self._slot_bytes = attached.page_size
        self.namespace = attached.namespace or self.namespace
        self._run(self.machine.mapped(True, "", self.world.now))

    def _copy_in(self, effect: CopyIn) -> None:
        to = [block * self.size for block in effect.blocks]
        pieces = copy_pieces(self.memory, to, self._pool[1], list(effect.offsets), self.size)
        self._copy(
            pieces,
            effect.deadline,
            lambda ok: self.machine.operations.copied_in(effect.ticket, ok, self.world.now),
        )

    def _copy_out(self, effect: CopyOut) -> None:
        to = [slot * self._slot_bytes for slot in effect.slots]
        frm = [block * self.size for block in effect.blocks]
        pieces = copy_pieces(self._bounce, to, self.memory, frm, self.size)
        self._copy(
            pieces,
            effect.deadline,
            lambda ok: self.machine.operations.copied_out(
                effect.ticket, effect.batch, ok, self.world.now
            ),
        )

    def _copy(
        self, pieces: list[Call], deadline: int, then: Callable[[bool], list[Effect]]
    ) -> None:
        """Piece by piece until the deadline; the client's thread does nothing else meanwhile."""
        self._copying = True
        pieces.reverse()
        kernels, mark = self.kernels, self.kernels.recorded if self.kernels is not None else 0

        def turn() -> None:
            if kernels is not None and kernels.done < mark and self.world.now < deadline:
                self.after(MS, turn)
                return
            if pieces and self.world.now < deadline:
                pieces.pop()()
                self.after(self.world.between(5 * US, 150 * US), turn)
                return
            self._copying = False
            self._run(then(not pieces))
            self.quietly(lambda: None)

        self.after(self.world.between(5 * US, 50 * US), turn)

    def _finish(self, done: Done) -> None:
        assert done.ticket in self.open, "an operation ended twice"
        operation = self.open.pop(done.ticket)
        self.books.ended += 1
        line = f"{operation.kind} {done.status.words}"
        self.books.statuses[line] = self.books.statuses.get(line, 0) + 1
        self.world.note(self.address, f"ends {done}")
        self.lent.difference_update(operation.blocks)
        if isinstance(done, LookupDone):
            assert (done.lease is not None) == (0 < done.blocks <= len(operation.keys))
        elif isinstance(done, LoadDone) and done.status is Status.OK:
            self._judge_load(done, operation)
        elif isinstance(done, LoadDone):
            assert done.failed == operation.blocks
        elif isinstance(done, SaveDone):
            assert done.saved + done.known <= len(operation.keys)
            if done.status is Status.OK or done.lost:
                assert done.saved + done.known + len(done.lost) == len(operation.keys)
            self.books.saved += done.saved
        self.spoil(operation.blocks)
        operation.then(done)

    def _judge_load(self, done: LoadDone, operation: Operation) -> None:
        for key, block in zip(operation.keys, operation.blocks, strict=True):
            got = self.memory[block * self.size : (block + 1) * self.size]
            right = got == content(self.size, key, self.role.shard)
            assert right, f"load {done.ticket}: wrong bytes"
            self.books.loaded += 1
