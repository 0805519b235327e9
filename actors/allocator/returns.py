"""What leaves its holder, and how it is noticed if the word was lost.

A page leaves its holder by Return, by a statement (PagesHeld) that omits it, or because the holder
is dead and the index has fenced it; it leaves the index by Freed.  With each beat the next few
pages of the index are looked at, for one whose Freed was lost, and the dead, for one whose Fenced
was.
"""

from collections import Counter
from collections.abc import Iterable

from pegaflow.actors.roles.recovery import Recovery
from pegaflow.actors.roster import HOLDERS
from pegaflow.actors.runtime.contract import Effect, On, Part, Send, Sender, on
from pegaflow.core.grants import Grants
from pegaflow.core.pool.columns import column
from pegaflow.wire.allocator import Fence, Freed, PagesHeld, Reserved, Return
from pegaflow.wire.control import Fenced
from pegaflow.wire.identities import GrantId, PageId
from pegaflow.wire.units import Count
from pegaflow.wire.values import INDEX

from .adoption import Adoption
from .pages import Pages
from .peer import IndexPeer
from .reclaim import Reclaim
from .reservations import Reservations

SCAN_PAGES: Count = 4096
"""Pages whose records are looked at per beat, to mend a lost Freed: about half a millisecond."""


class Returns(Part):
    """Hears who has given up what."""

    def __init__(
        self,
        pages: Pages,
        recovery: Recovery,
        *,
        index: IndexPeer,
        adoption: Adoption,
        reclaim: Reclaim,
        reservations: Reservations,
        grants: Grants[GrantId, Reserved],
        counts: Counter[str],
    ) -> None:
        self._pages = pages
        self._recovery = recovery
        self._index = index
        self._adoption = adoption
        self._reclaim = reclaim
        self._reservations = reservations
        self._grants = grants
        self._counts = counts
        self._scan = PageId(0)  # the next page of the index to look at

    def handlers(self) -> Iterable[On]:
        """Words of holders and of the index."""
        return (
            on(Return, self._on_return, *HOLDERS, INDEX),
            on(PagesHeld, self._on_pages_held, *HOLDERS, INDEX),
            on(Freed, self._on_freed, INDEX),
            on(Fenced, self._on_fenced, INDEX),
        )

    def beat(self, now: int) -> list[Effect]:
        """Ask for the Fenced that we lack; look at the next few pages."""
        slab = self._pages.slab
        waiting = set(self._recovery.awaited or ()) if slab is None else slab.owners.holders()
        lacking = [dead for dead in self._recovery.dead if dead in waiting]
        there = self._index.is_there
        effects: list[Effect] = [
            Send(self._index.address, Fence(dead)) for dead in lacking if there
        ]
        if slab is None:
            return effects
        chunk, self._scan = slab.owners.left_from(self._scan, SCAN_PAGES)
        effects += self._reclaim.from_index(chunk, self._reservations.serve)
        return effects + self._reservations.serve(now)

    def _on_return(self, sender: Sender, msg: Return, now: int) -> list[Effect]:
        """An early one must not wait: its page may be granted anew before its turn comes.
        A PagesHeld mends it."""
        if not self._recovery.ready:
            self._counts["returns_early"] += 1
            return []
        serve = self._reservations.serve
        return self._reclaim.from_holder(sender.address, msg.pages, serve)

    def _on_pages_held(self, sender: Sender, msg: PagesHeld, now: int) -> list[Effect]:
        """Take back what the holder does not name; send again what it may not have got."""
        holder, slab = sender.address, self._pages.slab
        if slab is None:
            return self._adoption.state(holder, msg, now)
        again: list[Effect] = []
        for number, grant in self._grants.statement(holder, msg.upto, ()).resend:
            if slab.owners.are_granted(column(grant.pages), number, holder).all():
                again.append(Send(holder, grant))
            else:
                self._grants.end(holder, number)  # a page that came back was heard of too
        gone = slab.owners.omitted(holder, msg.upto, column(msg.pages))
        return again + self._reclaim.from_holder(holder, gone, self._reservations.serve)

    def _on_fenced(self, sender: Sender, msg: Fenced, now: int) -> list[Effect]:
        dead, slab = msg.address, self._pages.slab
        if dead not in self._recovery.dead:
            self._index.fenced.add(dead)
        self._reservations.fence(dead)
        if slab is None:
            return self._adoption.fence(dead, now)
        pages = slab.owners.held_by(dead).pages
        return self._reclaim.from_holder(dead, pages, self._reservations.serve)

    def _on_freed(self, sender: Sender, msg: Freed, now: int) -> list[Effect]:
        self._index.address = sender.address
        if self._pages.slab is None:
            return self._adoption.scan(now)  # what has been freed so far will be found void
        serve = self._reservations.serve
        return self._reclaim.from_index(msg.pages, serve) + serve(now)
