"""Pages that somebody has given up: none is free before its ledger record was read.

The record, read after the word that gave the page up, decides: a sealed page is the index's, a void
one is free.  The ledger is read by a job, so that the actor stays a function of its inputs; who has
the page by then is looked at once more.
"""

from collections import Counter
from collections.abc import Callable

from pegaflow.actors.runtime.contract import Do, Effect, Part
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

    def from_holder(self, holder: Address, pages: Numbers[PageId], then: Then) -> list[Effect]:
        """A holder has given its word, or is dead: sealed pages are the index's, void ones free.

        Args:
            pages: those that are not this holder's are counted, and left alone.
            then: what follows once the records are read; not called if there is no page to look at.
        """
        slab = self._pages.slab
        if slab is None or not pages:
            return []
        grants = {p: g for p in pages if (g := slab.grant_of(p)) is not None and g[0] == holder}
        if len(grants) < len(pages):
            self._counts["pages_not_held"] += len(pages) - len(grants)

        def read(records: RecordsRead, now: int) -> list[Effect]:
            sealed = set(records.sealed)
            for page, grant in grants.items():
                if slab.grant_of(page) != grant:
                    self._counts["pages_not_held"] += 1
                elif page in sealed:
                    slab.leave(page)
                else:
                    slab.hand_back(page, holder)
            return then(now)

        return [Do(ReadRecords(tuple(grants)), read)] if grants else []

    def from_index(self, pages: Numbers[PageId], then: Then) -> list[Effect]:
        """The index may have voided pages: those are free.

        Args:
            pages: also some that are sealed, or not the index's at all: they stay.
            then: what follows once the records are read; not called without a page.
        """
        slab = self._pages.slab
        assert slab is not None

        def read(records: RecordsRead, now: int) -> list[Effect]:
            sealed = set(records.sealed)
            for page in pages:
                if page not in sealed and slab.is_left(page):
                    slab.free(page)
            return then(now)

        return [Do(ReadRecords(pages), read)] if pages else []
