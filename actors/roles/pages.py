"""Pages that the flusher reads into: granted by the allocator, returned when their run is over.

What was published is the index's when it is returned.  A grant that nobody waits for any more goes
back at once.  See wire/allocator.py.  The pages are in a book of the allocator's (roles/holder.py).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pegaflow.actors.runtime.contract import MS, Ask, Effect, On, Part, Sender, on
from pegaflow.actors.runtime.member import Member
from pegaflow.core.grants import Holdings
from pegaflow.wire.allocator import PagesHeld, Reserve, Reserved, Return
from pegaflow.wire.identities import NO_GRANT, GrantId, PageId, Stamp
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.units import Nanoseconds
from pegaflow.wire.values import ALLOCATOR, NOBODY, Numbers

RESERVE_NS: Nanoseconds = 1000 * MS
"""Patience with the allocator."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Pages of one size."""

    number: GrantId
    page_size: int
    pages: Numbers[PageId]
    stamps: Numbers[Stamp]


NO_PAGES = Grant(NO_GRANT, 0, (), ())
"""Nothing has been granted yet."""


class Pages(Part):
    """The pages that the allocator has granted us."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._grants: Holdings[GrantId, Grant] = Holdings(GrantId)

    def handlers(self) -> Iterable[On]:
        """Grants that are sent again."""
        return (on(Reserved, self._on_reserved_again, ALLOCATOR),)

    def restate(self, now: int) -> list[Effect]:
        """Nothing: the statement says all."""
        return []

    def statement(self) -> PagesHeld:
        """The pages, and the bytes of each."""
        held = self.held()
        return PagesHeld(self._grants.upto, tuple(held), 0, tuple(held.values()))

    def go_on(self, now: int) -> list[Effect]:
        """Nothing: whoever reads asks again."""
        return []

    def too_late(self, msg: Message, now: int) -> list[Effect]:
        """Pages that nobody waits for go back, once."""
        if not isinstance(msg, Reserved) or msg.status is not Status.OK:
            return []
        again = not self._grants.hear(msg.number)
        return [] if again else self._member.tell(ALLOCATOR, Return(msg.pages))

    @property
    def reachable(self) -> bool:
        """Whether there is anybody to ask."""
        return self._member.peer(ALLOCATOR) != NOBODY

    def held(self) -> dict[PageId, int]:
        """All pages, in the order in which they were granted, with the bytes of each."""
        grants = self._grants.values()
        return {page: grant.page_size for grant in grants for page in grant.pages}

    def reserve(
        self,
        page_size: int,
        count: int,
        deadline: int,
        then: Callable[[Grant | None, int], list[Effect]],
    ) -> list[Effect]:
        """Ask the allocator for pages; there has to be one (`reachable`).

        Args:
            page_size: bytes.
            count: all of them, or none.
            deadline: CLOCK_MONOTONIC, in nanoseconds.
            then: gets the grant, ours until `give_back`, or None.
        """

        def reserved(answer: Message, now: int) -> list[Effect]:
            if not isinstance(answer, Reserved) or answer.status is not Status.OK:
                return then(None, now)
            if not self._grants.hear(answer.number):
                return then(None, now)
            grant = Grant(answer.number, page_size, answer.pages, answer.stamps)
            self._grants.hold(grant.number, grant)
            return then(grant, now)

        allocator = self._member.peer(ALLOCATOR)
        return [Ask(allocator, Reserve(page_size, count), deadline, reserved)]

    def give_back(self, grant: Grant) -> list[Effect]:
        """The index has answered for these, or they are never sealed."""
        if self._grants.end(grant.number) is None:
            return []
        return self._member.tell(ALLOCATOR, Return(grant.pages))

    def _on_reserved_again(self, sender: Sender, msg: Reserved, now: int) -> list[Effect]:
        return self.too_late(msg, now)
