"""What session and flusher have in common: they hold what allocator and index grant.

What an actor holds of one granter is a `Book`; the part `Holder` has one for each granter and does
with it what every holder does (pegaflow/core/grants.py says why):

    each beat              the statement, to every living granter, in the order of the books
    a granter is up, new   all that we hold of it, one by one; the statement, which says that this
                           was all; and then what its predecessor has not answered
    an answer comes late   a grant that nobody waits for goes back, but only to the granter that we
                           know: the grants of a dead one have ended with it

In a crew the holder comes behind the parts whose books it states, so that a statement says what is
held after they have heard of the beat.

A book keeps its grants in `Holdings`, by number.  Pages are named one by one in a statement, and
not by their grant, so a book of pages keeps them as it likes, and of their grants the newest number
(`Heard`).  A grant that is sent again is told by its number from one that was lost (`Heard.hear`),
and is then like one that comes late; what follows is the book's own affair: the flusher has no use
for pages that nobody waits for, a session fills them, a Flush is written.
"""

from typing import Protocol

from pegaflow.actors.runtime.contract import Effect, Part, Send
from pegaflow.actors.runtime.member import Member
from pegaflow.wire.message import Message
from pegaflow.wire.values import Address


class Book(Protocol):
    """What we hold of one granter."""

    def restate(self, now: int) -> list[Effect]:
        """Tell a granter in a new life all that we hold of it, before its first statement."""

    def statement(self) -> Message:
        """Up to the newest number that we have heard of we hold exactly these."""

    def go_on(self, now: int) -> list[Effect]:
        """Ask a granter, which knows now what we hold, what we wait for."""

    def too_late(self, msg: Message, now: int) -> list[Effect]:
        """A grant may have come when nobody waits for it any more: give it back, unless we can use
        it.

        Args:
            msg: whatever came late of this granter; what is no grant is ignored.
        """


class Holder(Part):
    """States what we hold.

    Args:
        member: ours.
        books: by the name of the granter, a neighbour that we dial.
    """

    def __init__(self, member: Member, books: dict[str, Book]) -> None:
        assert set(books) <= set(member.dials)
        self._member, self._books = member, books

    def beat(self, now: int) -> list[Effect]:
        """State what we hold, so that the granters can mend what was lost."""
        tell = self._member.tell
        return [e for name, book in self._books.items() for e in tell(name, book.statement())]

    def met(self, neighbour: Address, now: int) -> list[Effect]:
        """A granter, perhaps in a new life that knows nothing of us: state all that we hold, before
        we ask it for anything."""
        book = self._books.get(neighbour.name)
        if book is None:
            return []
        return [*book.restate(now), Send(neighbour, book.statement()), *book.go_on(now)]

    def late(self, sender: Address, msg: Message, now: int) -> list[Effect]:
        """A grant that nobody waits for goes back; only our own granters grant."""
        book = self._books.get(sender.name)
        if book is None or self._member.peer(sender.name) != sender:
            return []
        return book.too_late(msg, now)
