"""Lookups, loads and saves: what the engine has started and has not heard the end of.

Each ends exactly once, with a `Done`: by its answer, at its deadline, or when the session is lost.
An operation that ends by itself while its answer is under way leaves no trace at the service: a
late lease is released, a late CopyBatch is answered with Drop.

Staged copies are done by the client's own thread between two calls of this part, so when an
operation ends here nothing writes the engine's blocks any more.  A load by process_vm is written by
the session: it ends by the session's word or by its proven death and by nothing else.

All times are CLOCK_MONOTONIC, in nanoseconds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate, compress

from pegaflow.wire.identities import Key, LeaseId
from pegaflow.wire.message import Message
from pegaflow.wire.session import (
    BatchCopied,
    Commit,
    Confirmed,
    Copied,
    CopyBatch,
    Drop,
    Found,
    Keep,
    Load,
    Loaded,
    Lookup,
    Pages,
    Release,
    Save,
    Saved,
    Skip,
    Way,
)
from pegaflow.wire.status import Status
from pegaflow.wire.values import U64s

from .effects import CopyIn, CopyOut, Effect, Finish, Memory, ToSession
from .link import Link, Then
from .patience import GRACE_NS, PING_NS
from .results import Chain, Done, Lease, LoadDone, LookupDone, SaveDone


class Kind(Enum):
    """What is done with blocks."""

    LOOKUP = "lookup"
    LOAD = "load"
    SAVE = "save"


@dataclass(slots=True)
class Operation:
    """One of them."""

    kind: Kind
    deadline: int
    blocks: tuple[int, ...] = ()  # of the engine
    question: int = 0  # newest one asked for it; forgotten with it
    copy: int = 0  # staged load: the session's number for it
    direct: bool = False  # load: the session may write into our blocks
    chains: Sequence[Chain] = ()  # save: those whose blocks hold their keys, as far as we know
    stands: Callable[[], bool] | None = None  # load without the session: what was copied was right

    def failed(self, ticket: int, status: Status) -> Done:
        """Its end without success."""
        if self.kind is Kind.LOOKUP:
            return LookupDone(ticket, status, None, 0)
        if self.kind is Kind.LOAD:
            return LoadDone(ticket, status, self.blocks)
        return SaveDone(ticket, status, 0, 0)


class Operations:
    """All of one client.

    Args:
        link: to the session.
        ready: whether a session serves us.
        kill: ends a session that does not answer while it may write our blocks.
    """

    def __init__(
        self, link: Link, ready: Callable[[], bool], kill: Callable[[int], list[Effect]]
    ) -> None:
        self.open: dict[int, Operation] = {}  # by ticket
        self.memory: Memory | None = None  # what is registered
        self.loads = Way.STAGED  # how our rank is served; valid while a session serves us
        self.saves = Way.STAGED
        self.chains = False  # a save may bring several; valid likewise
        self.asked = False  # the session was to move blocks by itself
        self._moved = False  # and has
        self._link, self._ready, self._kill = link, ready, kill

    def forget_session(self) -> bool:
        """The session is gone; whether it has moved blocks by itself."""
        moved, self.asked, self._moved = self._moved, False, False
        return moved

    # what the engine starts and ends

    def lookup(self, keys: tuple[Key, ...], deadline: int) -> tuple[int, list[Effect]]:
        """Start a lookup; its ticket, and what follows."""
        ticket = self._begin(Operation(Kind.LOOKUP, deadline))

        def found(answer: Message | None, now: int) -> list[Effect]:
            if not isinstance(answer, Found):
                return self._end(ticket, Status.EXPIRED)
            if answer.blocks > len(keys):  # more than there can be: believe nothing of it
                release = self._link.tell(Release(answer.lease))
                return [release, *self._end(ticket, Status.UNKNOWN)]
            life, blocks = self._link.session.incarnation, answer.blocks
            lease = Lease(life, answer.lease, blocks) if blocks else None
            disk, peers = tuple(answer.disk), tuple(answer.peers)
            done = LookupDone(ticket, answer.status, lease, blocks, disk=disk, peers=peers)
            return self._finish(ticket, done)

        if not self._ready():
            return ticket, self._end(ticket, Status.DISCONNECTED)
        return ticket, [self._ask(ticket, Lookup(keys), deadline, found)]

    def load(
        self, lease: Lease, blocks: tuple[int, ...], first: int, deadline: int, *, now: int
    ) -> tuple[int, list[Effect]]:
        """Start a load; its ticket, and what follows."""
        ticket = self._begin(Operation(Kind.LOAD, deadline, blocks))

        def pages(answer: Message | None, now: int) -> list[Effect]:
            if not isinstance(answer, Pages):
                return self._end(ticket, Status.EXPIRED)
            if answer.status is not Status.OK:
                return self._end(ticket, answer.status)
            operation = self.open.get(ticket)
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
            self._moved = True
            return self._finish(ticket, LoadDone(ticket, Status.OK, ()))

        if not self._ready() or self.memory is None:
            return ticket, self._end(ticket, Status.DISCONNECTED)
        if lease.session != self._link.session.incarnation:
            return ticket, self._end(ticket, Status.NO_SUCH_LEASE)
        number, rank = LeaseId(lease.number), self.memory.rank
        if self.loads is Way.STAGED:
            ask = Load(number, rank, first, len(blocks))
            return ticket, [self._ask(ticket, ask, deadline, pages)]
        self.open[ticket].direct = self.asked = True
        ask = Load(number, rank, first, len(blocks), blocks=blocks)
        grace_ns = min(GRACE_NS, max(0, deadline - now) // 2)
        told = self._ask(ticket, ask, deadline - grace_ns, loaded, grace_ns=grace_ns, fatal=True)
        return ticket, [told]

    def copy(
        self,
        blocks: tuple[int, ...],
        offsets: U64s,
        stands: Callable[[], bool],
        *,
        deadline: int,
    ) -> tuple[int, CopyIn]:
        """Start a load of pages that we have found ourselves, without the session.

        Args:
            stands: asked after the copy: whether these were the pages all the while.

        Returns:
            Its ticket, and what is to be done at the next look.
        """
        ticket = self._begin(Operation(Kind.LOAD, deadline, blocks, stands=stands))
        return ticket, CopyIn(ticket, blocks, offsets, deadline)

    def copied_in(self, ticket: int, ok: bool, now: int) -> list[Effect]:
        """The copy of a load has stopped."""
        operation = self.open.get(ticket)
        if operation is None:
            return []
        if operation.stands is not None:
            if not operation.stands():
                return self._end(ticket, Status.NO_SUCH_LEASE)
            failed = LoadDone(ticket, Status.COPY_FAILED, operation.blocks)
            return self._finish(ticket, LoadDone(ticket, Status.OK, ()) if ok else failed)

        def confirmed(answer: Message | None, now: int) -> list[Effect]:
            if not isinstance(answer, Confirmed):
                return self._end(ticket, Status.EXPIRED)
            if not ok:
                return self._end(ticket, Status.COPY_FAILED)
            if answer.status is not Status.OK:
                return self._end(ticket, answer.status)
            return self._finish(ticket, LoadDone(ticket, Status.OK, ()))

        return [self._ask(ticket, Copied(operation.copy, ok), operation.deadline, confirmed)]

    def save(
        self, chains: Sequence[Chain], deadline: int, *, commits: bool = False
    ) -> tuple[int, list[Effect]]:
        """Start a save of chains that fit each other; its ticket, and what follows."""
        blocks = tuple(block for chain in chains for block in chain.blocks)
        ticket = self._begin(Operation(Kind.SAVE, deadline, blocks, chains=chains))

        def saved(answer: Message | None, now: int) -> list[Effect]:
            if isinstance(answer, Saved):
                lost = tuple(answer.lost)
                self._moved |= bool(named and answer.saved and answer.status is Status.OK)
                done = SaveDone(ticket, answer.status, answer.saved, answer.known, lost=lost)
                return self._finish(ticket, done)
            return [self._link.tell(Drop(ticket)), *self._end(ticket, Status.EXPIRED)]

        if not self._ready() or self.memory is None:
            return ticket, self._end(ticket, Status.DISCONNECTED)
        named = () if self.saves is Way.STAGED else blocks
        self.asked |= bool(named)
        ask = _save(ticket, self.memory.rank, chains, commits, blocks=named)
        return ticket, [self._ask(ticket, ask, deadline, saved)]

    def copied_out(self, ticket: int, batch: int, ok: bool, now: int) -> list[Effect]:
        """The copy of a batch has stopped: Keep if the blocks were the keys' all along."""
        operation = self.open.get(ticket)
        if operation is None or operation.kind is not Kind.SAVE:
            return []
        skipped = self._look(operation)
        if ok and operation.chains:
            return [*skipped, self._link.tell(Keep(ticket, batch))]
        return self.drop(ticket)

    def _look(self, operation: Operation) -> list[Effect]:
        """Skip the chains of a save whose blocks hold something else by now, but not all of them:
        then there is nothing left of it, which is dropped."""
        valid = [chain.valid() for chain in operation.chains]
        gone = [c.order for c, holds in zip(operation.chains, valid, strict=True) if not holds]
        operation.chains = tuple(compress(operation.chains, valid))
        return [self._link.tell(Skip(order)) for order in gone] if operation.chains else []

    def skip(self, order: int) -> list[Effect]:
        """This rank, or the whole engine, will not save an order."""
        return [self._link.tell(Skip(order))] if self._ready() else []

    def commit(self, orders: tuple[int, ...]) -> list[Effect]:
        """The engine stands by these orders."""
        return [self._link.tell(Commit(orders))] if self._ready() else []

    def drop(self, ticket: int) -> list[Effect]:
        """The engine takes the blocks of a save back."""
        operation = self.open.get(ticket)
        if operation is None or operation.kind is not Kind.SAVE:
            return []
        return [self._link.tell(Drop(ticket)), *self._end(ticket, Status.DROPPED)]

    def release(self, lease: Lease) -> list[Effect]:
        """Give a lease back."""
        if not self._ready() or lease.session != self._link.session.incarnation:
            return []
        return [self._link.tell(Release(LeaseId(lease.number)))]

    # what the session says

    def heard(self, msg: Message, now: int) -> list[Effect]:
        """What it says unasked."""
        if isinstance(msg, BatchCopied):
            return self.copied_out(msg.save, msg.batch, True, now)
        return self._copy(msg) if isinstance(msg, CopyBatch) else []

    def too_late(self, answer: Message, now: int) -> list[Effect]:
        """An answer that nobody awaits any more: what it grants goes back."""
        if isinstance(answer, Found) and answer.blocks:
            return [self._link.tell(Release(answer.lease))]
        if isinstance(answer, Pages) and answer.copy:
            given_up = Copied(answer.copy, False)
            return [self._link.ask(given_up, now + PING_NS, lambda answer, now: [])]
        return []

    def _copy(self, msg: CopyBatch) -> list[Effect]:
        operation = self.open.get(msg.save)
        if operation is None or operation.kind is not Kind.SAVE:
            return [self._link.tell(Drop(msg.save))]
        sound = len(msg.positions) == len(msg.slots) > 0
        if not sound or max(msg.positions) >= len(operation.blocks):
            return self.drop(msg.save)
        skipped = self._look(operation)
        if not operation.chains:
            return self.drop(msg.save)
        blocks = tuple(operation.blocks[p] for p in msg.positions)
        return [
            *skipped,
            CopyOut(msg.save, msg.batch, blocks, msg.slots, deadline=operation.deadline),
        ]

    # how they end

    @property
    def written(self) -> bool:
        """Whether the session may write into our blocks."""
        return any(operation.direct for operation in self.open.values())

    def questions(self) -> set[int]:
        """Those whose answers they await."""
        return {operation.question for operation in self.open.values()}

    def end_all(self, status: Status) -> list[Effect]:
        """The session is gone: none goes on."""
        return [effect for ticket in list(self.open) for effect in self._end(ticket, status)]

    def end_staged(self, status: Status) -> list[Effect]:
        """All end but those for which the session may write into our blocks."""
        staged = [ticket for ticket, operation in self.open.items() if not operation.direct]
        return [effect for ticket in staged for effect in self._end(ticket, status)]

    def _begin(self, operation: Operation) -> int:
        ticket = self._link.number()
        self.open[ticket] = operation
        return ticket

    def _end(self, ticket: int, status: Status) -> list[Effect]:
        """An operation ends without success."""
        operation = self.open.get(ticket)
        return [] if operation is None else self._finish(ticket, operation.failed(ticket, status))

    def _finish(self, ticket: int, done: Done) -> list[Effect]:
        operation = self.open.pop(ticket, None)
        if operation is None:
            return []
        self._link.forget(operation.question)
        return [Finish(done)]

    def _ask(
        self,
        ticket: int,
        msg: Message,
        deadline: int,
        then: Then,
        *,
        grace_ns: int = 0,
        fatal: bool = False,
    ) -> ToSession:
        """A question for an operation: it is forgotten if that ends before."""
        asked = self._link.ask(msg, deadline, then, grace_ns=grace_ns, fatal=fatal)
        self.open[ticket].question = asked.envelope.question
        return asked


def _save(number: int, rank: int, chains: Sequence[Chain], commits: bool, *, blocks: U64s) -> Save:
    first, *more = chains
    return Save(
        number,
        rank,
        tuple(Key(key) for chain in chains for key in chain.keys),
        Key(first.parent),
        order=first.order,
        blocks=blocks,
        commits=commits,
        starts=tuple(accumulate(len(chain.keys) for chain in chains[:-1])),
        parents=tuple(Key(chain.parent or bytes(len(chain.keys[0]))) for chain in more),
        orders=tuple(chain.order for chain in more),
    )
