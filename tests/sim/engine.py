"""A scripted engine: one life of a process with KV blocks, and the client state machine in it.

It does for `Machine` what client.py does: sends, maps, and copies by itself, a piece at a time, and
hears of nothing else until a copy is over.  The content of a block follows from its key, so a load
that ended well can be judged byte by byte.  At random times the engine takes back the blocks of a
save under way and overwrites them at once, as another thread of a real engine would.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b

from pegaflow.client.machine import (
    CopyIn,
    CopyOut,
    DialSession,
    Effect,
    Finish,
    HangUp,
    Identity,
    Machine,
    MapFiles,
    ToDesk,
)
from pegaflow.client.results import Done, Lease, LoadDone, LookupDone, SaveDone
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.layout import LayerLayout, Layout
from pegaflow.wire.session import Attached
from pegaflow.wire.status import Status
from pegaflow.wire.values import CLIENT, NOBODY, Address

from .memory import Files, copy_pieces
from .world import MS, US, Call, Link, Proc, World

BLOCKS = 28
"""Blocks of one engine: a few requests at a time."""

CHAINS = 7
CHAIN_BLOCKS = 14
FORK = 4
"""Chains of keys that all engines share; every two of them have their first FORK blocks in common,
and all together are larger than the pool, so that eviction never rests."""

OPEN_MAX = 6
"""Operations of one engine at a time."""


def chain(number: int) -> tuple[bytes, ...]:
    """The keys of a chain, head first."""
    keys: list[bytes] = []
    for depth in range(CHAIN_BLOCKS):
        branch = number // 2 if depth < FORK else number
        parent = keys[-1] if keys else b""
        keys.append(blake2b(parent + bytes((depth, branch)), digest_size=16).digest())
    return tuple(keys)


_CONTENT: dict[tuple[int, bytes], bytes] = {}


def content(size: int, key: bytes) -> bytes:
    """The bytes of the block with this key in an engine whose blocks have this size."""
    known = _CONTENT.get((size, key))
    if known is None:
        word = blake2b(key + size.to_bytes(8, "little"), digest_size=16).digest()
        known = _CONTENT[size, key] = (word * (size // 16 + 1))[:size]
    return known


@dataclass(slots=True)
class Operation:
    """One operation without an end yet."""

    kind: str
    keys: tuple[bytes, ...]
    blocks: tuple[int, ...] = ()
    taken_back: bool = False  # save: the engine has overwritten the blocks


@dataclass(slots=True)
class Books:
    """What became of all operations of all engines."""

    started: int = 0
    ended: int = 0
    abandoned: int = 0  # open when their engine died
    loaded: int = 0  # blocks judged right
    saved: int = 0
    statuses: dict[str, int] = field(default_factory=dict)


class Engine(Proc):
    """One life of one engine."""

    def __init__(self, world: World, files: Files, books: Books, engine: str, size: int) -> None:
        super().__init__(world, Address(CLIENT, world.rng.getrandbits(63) | 1))
        self.files, self.books, self.engine, self.size = files, books, engine, size
        self.machine = Machine(
            Identity(
                address=self.address,
                engine=engine,
                generation=world.rng.randbytes(16),
                namespace=b"model".ljust(16),
                probe=b"",
                world=1,
                pid=self.pid,
                started=self.started,
            )
        )
        self.memory = bytearray(BLOCKS * size)
        self.free = list(range(BLOCKS))
        self.open: dict[int, Operation] = {}  # by ticket
        self.leases: list[tuple[Lease, tuple[bytes, ...]]] = []  # not released yet, as far as known
        self.acting = True  # False: starts nothing any more
        self.pool = ("", bytearray())  # path and bytes
        self.bounce = bytearray()
        self.slot_bytes = 0
        self.namespace = b""
        self._effects: deque[Effect] = deque()  # of the machine, not carried out yet
        self._calls: deque[Call] = deque()  # inputs that wait for a copy to end
        self._copying = False
        self._session: Link | None = None
        layout = Layout(BLOCKS, (LayerLayout(0, 0, size, size),), "uint8", "sim")
        self.machine.register(0, layout, (len(self.memory),))
        self.after(world.between(0, 5 * MS), self.act)

    # what the engine does

    def act(self) -> None:
        """One random deed, then another some time later."""
        if not self.acting:
            return
        rng = self.world.rng
        pause = rng.choice((MS, 10 * MS, 40 * MS, 200 * MS))
        self.after(self.world.between(pause // 2, pause * 2), self.act)
        if len(self.open) < OPEN_MAX:
            self.quietly(rng.choice((self.look_up, self.save, self.save, self.load, self.release)))

    def look_up(self) -> None:
        """Ask for a prefix of some chain."""
        keys = chain(self.world.between(0, CHAINS))[: self.world.between(1, CHAIN_BLOCKS + 1)]
        ticket, effects = self.machine.lookup(keys, self._deadline())
        self._begin(ticket, Operation("lookup", keys), effects)

    def save(self) -> None:
        """Compute some blocks of a chain and save them."""
        rng = self.world.rng
        keys = chain(rng.randrange(CHAINS))
        start = rng.choice((0, 0, 0, FORK, rng.randrange(CHAIN_BLOCKS)))
        parent = keys[start - 1] if start else b""
        keys = keys[start : start + rng.randrange(1, CHAIN_BLOCKS)]
        blocks = self._allocate(len(keys))
        if not blocks:
            return
        for key, block in zip(keys, blocks, strict=True):
            self._write(block, content(self.size, key))
        operation = Operation("save", keys, blocks)
        ticket, effects = self.machine.save(
            keys, blocks, parent, lambda: not operation.taken_back, self._deadline()
        )
        self._begin(ticket, operation, effects)
        if rng.random() < 0.25:
            when = rng.choice((200 * US, 2 * MS, 20 * MS))
            self.after(rng.randrange(when), lambda: self._take_back(ticket))

    def load(self) -> None:
        """Load some blocks of a lease that we have."""
        if not self.leases:
            return
        rng = self.world.rng
        lease, keys = rng.choice(self.leases)
        first = rng.choice((0, 0, rng.randrange(lease.blocks)))
        keys = keys[first : lease.blocks]
        blocks = self._allocate(len(keys))
        if not blocks:
            return
        if rng.random() < 0.9:
            self.leases = [held for held in self.leases if held[0] != lease]
        ticket, effects = self.machine.load(lease, blocks, first, self._deadline())
        self._begin(ticket, Operation("load", keys, blocks), effects)

    def release(self) -> None:
        """Give some lease back."""
        if self.leases:
            self.give_back(self.world.rng.randrange(len(self.leases)))

    def give_back(self, at: int) -> None:
        """Give this lease back."""
        lease, _ = self.leases.pop(at)
        self._run(self.machine.release(lease))

    def leave(self) -> None:
        """Close the client and end."""

        def go() -> None:
            self._run(self.machine.leave())
            self.die("leaves")

        self.input(lambda: self.quietly(go))

    def settle(self) -> None:
        """Start nothing any more; give back what is not in use."""
        self.acting = False

        def give_all_back() -> None:
            while self.leases:
                self.give_back(0)

        self.input(lambda: self.quietly(give_all_back))

    def quietly(self, call: Call) -> None:
        """Do this between two copies: the client has one thread."""
        self._calls.append(call)
        while self._calls and not self._busy and self.alive:
            self._calls.popleft()()

    # what the process does

    @property
    def _busy(self) -> bool:
        return self._copying or bool(self._effects)

    def on_envelope(self, envelope: Envelope) -> None:
        """A message for the machine."""
        self.quietly(lambda: self._run(self.machine.receive(envelope, self.world.now)))

    def wake_at(self) -> int | None:
        """The machine's, once it looks."""
        return None if self._busy else self.machine.wake_at()

    def wake(self) -> None:
        """The machine's."""
        self.quietly(lambda: self._run(self.machine.wake(self.world.now)))

    def die(self, why: str) -> None:
        """Whatever is open has no end any more, and needs none."""
        self.books.abandoned += len(self.open)
        self.open.clear()
        super().die(why)

    def check(self) -> None:
        """Every operation that is open here is open in the machine, and the reverse."""
        if self.alive and not self._busy:
            assert self.open.keys() == self.machine.operations.keys(), "an operation was lost"

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
        proc = self.world.by_pid[effect.pid]

        def dead() -> None:
            if self._session is link:
                self._run(self.machine.session_died(self.world.now))

        def tell() -> None:
            self.input(lambda: self.quietly(dead))

        if proc.alive:
            proc.watch(tell)

    def _hang_up_session(self) -> None:
        if self._session is not None:
            self.hang_up(self._session.target)
            self._session = None

    def _map(self, attached: Attached) -> None:
        named = self.files.named
        pool = named.get(attached.pool_path)
        bounce = named.get(attached.bounce_path)
        if pool is None or bounce is None:
            self._run(self.machine.mapped(False, "no such file", self.world.now))
            return
        self.pool, self.bounce = (attached.pool_path, pool), bounce
        self.slot_bytes, self.namespace = attached.page_size, attached.namespace
        self._run(self.machine.mapped(True, "", self.world.now))

    def _copy_in(self, effect: CopyIn) -> None:
        to = [block * self.size for block in effect.blocks]
        pieces = copy_pieces(self.memory, to, self.pool[1], list(effect.offsets), self.size)
        self._copy(
            pieces,
            effect.deadline,
            lambda ok: self.machine.copied_in(effect.ticket, ok, self.world.now),
        )

    def _copy_out(self, effect: CopyOut) -> None:
        to = [slot * self.slot_bytes for slot in effect.slots]
        frm = [block * self.size for block in effect.blocks]
        pieces = copy_pieces(self.bounce, to, self.memory, frm, self.size)
        self._copy(
            pieces,
            effect.deadline,
            lambda ok: self.machine.copied_out(effect.ticket, effect.batch, ok, self.world.now),
        )

    def _copy(
        self, pieces: list[Call], deadline: int, then: Callable[[bool], list[Effect]]
    ) -> None:
        """Piece by piece until the deadline; the client's thread does nothing else meanwhile."""
        self._copying = True

        def turn() -> None:
            if pieces and self.world.now < deadline:
                pieces.pop(0)()
                self.after(self.world.between(5 * US, 150 * US), turn)
                return
            self._copying = False
            self._run(then(not pieces))
            self.quietly(lambda: None)

        self.after(self.world.between(5 * US, 50 * US), turn)

    # operations

    def _deadline(self) -> int:
        patience = self.world.rng.choice((3 * MS, 40 * MS, 1000 * MS, 1000 * MS, 4000 * MS))
        return self.world.now + patience

    def _allocate(self, count: int) -> tuple[int, ...]:
        if count > len(self.free):
            return ()
        return tuple(self.free.pop() for _ in range(count))

    def _write(self, block: int, data: bytes) -> None:
        self.memory[block * self.size : (block + 1) * self.size] = data

    def _begin(self, ticket: int, operation: Operation, effects: list[Effect]) -> None:
        assert ticket not in self.open
        self.open[ticket] = operation
        self.books.started += 1
        self.world.note(self.address, f"{operation.kind} {ticket} of {len(operation.keys)} blocks")
        self._run(effects)

    def _take_back(self, ticket: int) -> None:
        operation = self.open.get(ticket)
        if operation is None:
            return
        self.world.note(self.address, f"takes the blocks of save {ticket} back")
        operation.taken_back = True
        self._spoil(operation)
        if self.world.rng.random() < 0.5:
            self.quietly(lambda: self._run(self.machine.drop(ticket)))

    def _spoil(self, operation: Operation) -> None:
        for block in operation.blocks:
            self._write(block, self.world.rng.randbytes(8) * (self.size // 8))

    def _finish(self, done: Done) -> None:
        assert done.ticket in self.open, "an operation ended twice"
        operation = self.open.pop(done.ticket)
        self.books.ended += 1
        line = f"{operation.kind} {done.status.words}"
        self.books.statuses[line] = self.books.statuses.get(line, 0) + 1
        self.world.note(self.address, f"ends {done}")
        if isinstance(done, LookupDone):
            if done.lease is not None:
                assert 0 < done.blocks <= len(operation.keys)
                self.leases.append((done.lease, operation.keys))
            return
        if isinstance(done, LoadDone) and done.status is Status.OK:
            for key, block in zip(operation.keys, operation.blocks, strict=True):
                got = self.memory[block * self.size : (block + 1) * self.size]
                assert got == content(self.size, key), f"load {done.ticket}: wrong bytes"
                self.books.loaded += 1
        elif isinstance(done, LoadDone):
            assert done.failed == operation.blocks
        elif isinstance(done, SaveDone):
            assert done.saved + done.known <= len(operation.keys)
            if done.status is Status.OK:
                assert done.saved + done.known == len(operation.keys)
            self.books.saved += done.saved
        self._spoil(operation)
        self.free.extend(operation.blocks)

    @property
    def served(self) -> bool:
        """Whether a session serves this engine and nothing is open."""
        return self.machine.state == "ready" and not self.open and self.machine.session != NOBODY
