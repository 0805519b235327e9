"""Pages that somebody has given up: none is free before its ledger record was read.

The record, read after the word that gave the page up, decides: a sealed page is the index's, a void
one is free.  The ledger is read by a job, so that the actor stays a function of its inputs; who has
the page by then is looked at once more.
"""

from collections import Counter
from collections.abc import Callable

from pegaflow.actors.runtime.contract import Do, Effect, Part
from pegaflow.core.pool.columns import among, column, said
from pegaflow.core.pool.fingerprints import U64
from pegaflow.wire.identities import PageId
from pegaflow.wire.jobs import ReadRecords, RecordsRead
from pegaflow.wire.values import Address, Numbers

from .pages import Pages

Then = Callable[[int], list[Effect]]


class Reclaim(Part):
    """Takes pages back; what has to follow is said with each call."""

    def __init__(self, pages: Pages, counts: Counter[str]) -> None:
        self._pages = pages
        self._counts = counts

    def from_holder(
        self, holder: Address, pages: Numbers[PageId] | U64, then: Then
    ) -> list[Effect]:
        """A holder has given its word, or is dead: sealed pages are the index's, void ones free.

        Args:
            pages: those that are not this holder's are counted, and left alone.
            then: what follows once the records are read; not called if there is no page to look at.
        """
        slab = self._pages.slab
        if slab is None or not len(pages):
            return []
        held = slab.owners.held_of(slab.owners.known(column(pages)), holder)
        self._count(len(pages) - len(held.pages))

        def read(records: RecordsRead, now: int) -> list[Effect]:
            mine = held.pages[slab.owners.are_granted(*held, holder)]
            self._count(len(held.pages) - len(mine))
            sealed = among(mine, column(records.sealed))
            slab.leave(mine[sealed], holder)
            slab.hand_back(mine[~sealed], holder)
            return then(now)

        return [Do(ReadRecords(said(held.pages)), read)] if len(held.pages) else []

    def from_index(self, pages: Numbers[PageId] | U64, then: Then) -> list[Effect]:
        """The index may have voided pages: those are free.

        Args:
            pages: also some that are sealed, or not the index's at all: they stay.
            then: what follows once the records are read; not called without a page.
        """
        slab = self._pages.slab
        assert slab is not None
        named = slab.owners.known(column(pages))

        def read(records: RecordsRead, now: int) -> list[Effect]:
            void = named[~among(named, column(records.sealed))]
            slab.free(void[slab.owners.are_left(void)])
            return then(now)

        return [Do(ReadRecords(said(named)), read)] if len(named) else []

    def _count(self, pages: int) -> None:
        """So many were named by somebody who did not have them, or not any more."""
        if pages:
            self._counts["pages_not_held"] += pages
