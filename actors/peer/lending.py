"""What we lend to other hosts.  See wire/peer.py.

A Borrow becomes a Find of our index.  The lease that it grants is ours, in a book of the index's
(roles/holder.py), as long as the loan stands and until its pages are recalled: no byte of them is
being read any more then.  A loan whose lease the index has lost has not stood all the time: it is
ended, and its reader is told so when it gives back.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from pegaflow.actors.runtime.contract import (
    Ask,
    Do,
    Effect,
    On,
    Part,
    Reply,
    Send,
    Sender,
    on,
)
from pegaflow.actors.runtime.member import Member
from pegaflow.core.grants import Holdings
from pegaflow.core.pool.geometry import MIN_PAGE, Geometry
from pegaflow.wire.control import Welcome
from pegaflow.wire.identities import NO_CLAIM, NO_LEASE, Incarnation, LeaseId, PageId
from pegaflow.wire.index import Find, Held, LeasesHeld, LeasesLost, Release
from pegaflow.wire.jobs import Done
from pegaflow.wire.layout import PAGE_ALIGN
from pegaflow.wire.message import Message
from pegaflow.wire.peer import (
    AWAY_NS,
    LOAN_BYTES,
    LOAN_NS,
    LOANS_MAX,
    Borrow,
    Enter,
    Entered,
    Follow,
    GiveBack,
    Lent,
    Ping,
    Pong,
    Returned,
)
from pegaflow.wire.peerjobs import (
    AdmitReader,
    DismissReader,
    LendPages,
    ReaderAdmitted,
    RecallPages,
)
from pegaflow.wire.status import Status
from pegaflow.wire.units import Count, Nanoseconds
from pegaflow.wire.values import INDEX, NOBODY, REMOTE_PEER, Address, Numbers

from .telling import Telling

VISITORS_MAX: Count = 256
"""Hosts that read from us: far more than one list has."""

FIND_MOST_NS: Nanoseconds = AWAY_NS
"""Longest patience with our index: a reader that waits longer is answered with what there is."""


@dataclass(slots=True, eq=False)
class Loan:
    """Blocks that a host may read."""

    number: LeaseId  # of the loan
    lease: LeaseId  # of our index
    shards: int
    pages: Numbers[PageId]
    bytes_: int  # of the pages
    until_ns: int  # it ends unless it is named before
    ending: bool = False  # it is being recalled
    lost: bool = False  # it has not stood all the time


class Visitor:
    """A host that reads from us."""

    def __init__(self, now: int) -> None:
        self.heard_ns = now
        self.asked = 0  # questions about it that our index has not answered,
        self.asked_bytes = 0  # and the pages that they are for
        self.loans: dict[LeaseId, Loan] = {}  # those that stand, or are being recalled

    @property
    def lent_bytes(self) -> int:
        """Of all loans."""
        return sum(loan.bytes_ for loan in self.loans.values())


class Lending(Part):
    """Loans, and those who have them."""

    def __init__(self, member: Member, telling: Telling, counts: Counter[str]) -> None:
        self._member, self._telling, self._counts = member, telling, counts
        self._geometry = Geometry(0, MIN_PAGE)  # the pool's, from Welcome on
        self.visitors: dict[Address, Visitor] = {}
        self._leases: Holdings[LeaseId, Loan] = Holdings(LeaseId)  # of the index
        self._newest = NO_LEASE  # number of a loan
        self._next_ns: int | None = None  # when to look after them

    def handlers(self) -> Iterable[On]:
        """Readers, and the index that lends to us what we lend to them."""
        return (
            on(Follow, self._on_follow, REMOTE_PEER),
            on(Enter, self._on_enter, REMOTE_PEER),
            on(Borrow, self._on_borrow, REMOTE_PEER),
            on(GiveBack, self._on_give_back, REMOTE_PEER),
            on(Ping, self._on_ping, REMOTE_PEER),
            on(Held, self._on_held_again, INDEX),
            on(LeasesLost, self._on_leases_lost, INDEX),
        )

    def up(self, welcome: Welcome, now: int) -> list[Effect]:
        """The pool is known."""
        self._geometry = Geometry(welcome.pool_bytes, welcome.extent_bytes)
        self._next_ns = now
        return []

    def gauges(self) -> dict[str, int]:
        """How much is lent."""
        loans = [loan for visitor in self.visitors.values() for loan in visitor.loans.values()]
        return {
            "peer_visitors": len(self.visitors),
            "peer_loans": len(loans),
            "peer_lent_bytes": sum(loan.bytes_ for loan in loans),
        }

    def wake_at(self) -> int | None:
        """When to look who is silent, and which loans nobody names."""
        return self._next_ns

    def wake(self, now: int) -> list[Effect]:
        """End what is over."""
        if self._next_ns is None or now < self._next_ns:
            return []
        late = now - self._next_ns > AWAY_NS // 6
        self._next_ns = now + AWAY_NS // 6
        effects: list[Effect] = []
        for address, visitor in list(self.visitors.items()):
            if late:
                visitor.heard_ns = now
            elif now - visitor.heard_ns > AWAY_NS:
                effects += self._leaves(address, visitor)
                continue
            for loan in list(visitor.loans.values()):
                if now >= loan.until_ns and not late:
                    self._counts["peer_loans_expired"] += 1
                    effects += self._end(visitor, loan)
        return effects

    def check(self) -> None:
        """Each loan has its lease."""
        held = {loan.lease for v in self.visitors.values() for loan in v.loans.values()}
        assert held <= set(self._leases.numbers())

    # a book of the index's

    def restate(self, now: int) -> list[Effect]:
        """Each lease."""
        tell = self._member.tell
        return [
            effect
            for number, loan in self._leases.items()
            for effect in tell(INDEX, Held(number, loan.shards, loan.pages))
        ]

    def statement(self) -> LeasesHeld:
        """The leases."""
        return LeasesHeld(self._leases.upto, self._leases.numbers(), NO_CLAIM, ())

    def go_on(self, now: int) -> list[Effect]:
        """Nothing: readers ask again."""
        return []

    def too_late(self, msg: Message, now: int) -> list[Effect]:
        """A lease that nobody waits for goes back, once."""
        if not isinstance(msg, Held) or msg.number == NO_LEASE:
            return []
        new = self._leases.hear(msg.number)
        return self._member.tell(INDEX, Release(msg.number)) if new else []

    # readers

    def _on_held_again(self, sender: Sender, msg: Held, now: int) -> list[Effect]:
        return self.too_late(msg, now)

    def _on_follow(self, sender: Sender, msg: Follow, now: int) -> list[Effect]:
        if not self._remembers(self._visitor(sender, now), sender):
            return []
        return self._telling.follow(sender.address, msg)

    def _on_enter(self, sender: Sender, msg: Enter, now: int) -> list[Effect]:
        if not self._remembers(self._visitor(sender, now), sender):
            return [Reply(sender, Entered(Status.BUSY))]

        def admitted(result: ReaderAdmitted | Done, now: int) -> list[Effect]:
            if isinstance(result, Done):
                return [Reply(sender, Entered(result.status))]
            return [Reply(sender, Entered(Status.OK, result.offer, result.token))]

        return [Do(AdmitReader(sender.address.incarnation, msg.ask), admitted)]

    def _on_borrow(self, sender: Sender, msg: Borrow, now: int) -> list[Effect]:
        visitor = self._visitor(sender, now)
        cut = self._telling.cuts.get(msg.namespace)
        index = self._member.peer(INDEX)
        block = page_bytes(cut.payload_bytes) * cut.shards if cut is not None else 1
        wanted = len(msg.keys) * block
        room = LOAN_BYTES - visitor.lent_bytes - visitor.asked_bytes
        full = len(visitor.loans) + visitor.asked >= LOANS_MAX or wanted > room
        full = full or not self._remembers(visitor, sender)
        if full or index == NOBODY or self._member.draining or cut is None:
            self._counts["peer_borrows_refused"] += 1
            return [Reply(sender, Lent(Status.BUSY if full else Status.NOT_READY))]
        visitor.asked += 1
        visitor.asked_bytes += wanted

        def found(answer: Message, now: int) -> list[Effect]:
            visitor.asked -= 1
            visitor.asked_bytes -= wanted
            if not isinstance(answer, Held):
                return [Reply(sender, Lent(Status.NOT_READY))]
            if answer.number == NO_LEASE:
                return [Reply(sender, Lent(Status.OK))]
            if not self._leases.hear(answer.number):
                return [Reply(sender, Lent(Status.NOT_READY))]
            if not self._remembers(visitor, sender):
                release = self._member.tell(INDEX, Release(answer.number))
                return [Reply(sender, Lent(Status.NOT_READY)), *release]
            return self._lend(sender, answer, cut.payload_bytes, now)

        patience = min(msg.budget_ns, FIND_MOST_NS)
        find = Find(msg.namespace, msg.keys, near=True)
        return [Ask(index, find, now + patience, found)]

    def _lend(self, sender: Sender, held: Held, payload_bytes: int, now: int) -> list[Effect]:
        visitor = self.visitors[sender.address]
        size = page_bytes(payload_bytes)
        self._newest = LeaseId(self._newest + 1)
        loan = Loan(
            self._newest,
            held.number,
            held.shards,
            held.pages,
            bytes_=len(held.pages) * size,
            until_ns=now + LOAN_NS,
        )
        visitor.loans[loan.number] = loan
        self._leases.hold(held.number, loan)
        if not self._geometry.hold(held.pages, size):
            self._counts["peer_borrows_refused"] += 1
            return [Reply(sender, Lent(Status.BAD_LAYOUT)), *self._end(visitor, loan)]
        offsets = self._geometry.offsets(held.pages, size)
        blocks = len(held.pages) // held.shards

        def lent(done: Done, now: int) -> list[Effect]:
            if not done.ok:
                return [Reply(sender, Lent(done.status)), *self._end(visitor, loan)]
            self._counts["peer_blocks_lent"] += blocks
            answer = Lent(
                Status.OK,
                loan.number,
                blocks,
                payload_bytes,
                shards=held.shards,
                offsets=offsets,
                sums=held.checksums,
            )
            return [Reply(sender, answer)]

        job = LendPages(sender.address.incarnation, loan.number, offsets, payload_bytes)
        return [Do(job, lent)]

    def _on_give_back(self, sender: Sender, msg: GiveBack, now: int) -> list[Effect]:
        visitor = self._visitor(sender, now)
        loan = visitor.loans.get(msg.loan)
        stood = loan is not None and not (loan.ending or loan.lost)
        answer = Reply(sender, Returned(Status.OK if stood else Status.NO_SUCH_LEASE))
        return [answer, *(self._end(visitor, loan) if loan is not None else ())]

    def _on_ping(self, sender: Sender, msg: Ping, now: int) -> list[Effect]:
        visitor = self._visitor(sender, now)
        named = set(msg.loans)
        effects: list[Effect] = [
            Send(sender.address, Pong(*self._telling.pinged(sender.address, msg)))
        ]
        for number, loan in list(visitor.loans.items()):
            if number in named:
                loan.until_ns = now + AWAY_NS
            elif number <= msg.lent_upto:
                effects += self._end(visitor, loan)
        return effects + self._telling.go_on(sender.address)

    def _visitor(self, sender: Sender, now: int) -> Visitor:
        """Who has said something; one of too many is not remembered, so nothing is lent to it."""
        visitor = self.visitors.get(sender.address, Visitor(now))
        if len(self.visitors) < VISITORS_MAX:
            self.visitors[sender.address] = visitor
        visitor.heard_ns = now
        return visitor

    def _remembers(self, visitor: Visitor, sender: Sender) -> bool:
        """Whether it is one of those that something may be lent to."""
        return self.visitors.get(sender.address) is visitor

    def _leaves(self, address: Address, visitor: Visitor) -> list[Effect]:
        """It is silent: it has nothing of ours any more."""
        del self.visitors[address]
        self._telling.forget(address)
        reader: Incarnation = address.incarnation
        effects: list[Effect] = [Do(DismissReader(reader), lambda done, now: [])]
        for loan in list(visitor.loans.values()):
            self._counts["peer_loans_expired"] += 1
            effects += self._end(visitor, loan)
        return effects

    def _end(self, visitor: Visitor, loan: Loan) -> list[Effect]:
        """Recall a loan; its lease ends when no byte of its pages is being read any more."""
        if loan.ending:
            return []
        loan.ending = True

        def recalled(done: Done, now: int) -> list[Effect]:
            visitor.loans.pop(loan.number, None)
            self._leases.end(loan.lease)
            return self._member.tell(INDEX, Release(loan.lease))

        return [Do(RecallPages(loan.number), recalled)]

    def _on_leases_lost(self, sender: Sender, msg: LeasesLost, now: int) -> list[Effect]:
        effects: list[Effect] = []
        lost = set(msg.numbers)
        for visitor in self.visitors.values():
            for loan in list(visitor.loans.values()):
                if loan.lease in lost:
                    loan.lost = True
                    effects += self._end(visitor, loan)
        return effects


def page_bytes(payload_bytes: int) -> int:
    """Of a page that holds so much."""
    return -(-payload_bytes // PAGE_ALIGN) * PAGE_ALIGN
