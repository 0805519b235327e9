"""The blocks of an earlier life: the ledger is read when this one begins.

It is read chunk by chunk (core/blocks/adoption.py); what comes meanwhile waits.  What was adopted
is older than whatever has been used since.  Most of it is cold, and becomes a block when somebody
asks for it, or when a search for victims has to see it (`warm_coldest`).
"""

from collections import Counter
from collections.abc import Iterator
from itertools import islice

import numpy as np

from pegaflow.actors.roles.recovery import Recovery
from pegaflow.actors.runtime.contract import Effect, Note, Part
from pegaflow.actors.runtime.member import Member
from pegaflow.core.blocks.adoption import Adoption
from pegaflow.wire.allocator import Freed
from pegaflow.wire.control import Welcome
from pegaflow.wire.identities import PageId
from pegaflow.wire.values import ALLOCATOR, LIST_MAX

from .residency import Residency


class PoolAdoption(Part):
    """Reads the ledger, then lets everybody be heard."""

    def __init__(
        self, member: Member, recovery: Recovery, residency: Residency, counts: Counter[str]
    ) -> None:
        self._member, self._recovery, self._residency = member, recovery, residency
        self._counts = counts
        self._reading: Adoption | None = None  # while the ledger is being read
        self._adopted: Adoption | None = None  # read, but not asked yet for the coldest
        self._coldest: dict[int, Iterator[PageId]] = {}  # page size -> coldest first

    def up(self, welcome: Welcome, now: int) -> list[Effect]:
        """Begin to read the ledger, which is mapped by now."""
        here = self._residency
        self._reading = Adoption(here.ledger, here.geometry, here.blocks)
        return []

    def wake_at(self) -> int | None:
        """At once while the ledger is being read."""
        return 0 if self._reading is not None else None

    def wake(self, now: int) -> list[Effect]:
        """Read on."""
        reading = self._reading
        return self._know(reading) if reading is not None and not reading.step() else []

    def warm_coldest(self, page_size: int, count: int) -> None:
        """Make the coldest blocks of an earlier life ones like any other, so that a search for
        victims sees them.

        Args:
            page_size: of the victims that are wanted.
            count: how many are; of other sizes one is enough, to compare ages.
        """
        if self._adopted is not None:  # sorting a million takes longer than anybody should wait
            self._coldest, self._adopted = self._adopted.coldest(), None
        here = self._residency
        for size, pages in list(self._coldest.items()):
            most = count if size == page_size else 1
            warmed = [np.empty(0, np.int64)]
            while most > 0 and (some := list(islice(pages, most))):
                warmed.append(here.blocks.warm_pages(np.array(some, np.int64)))
                most -= len(warmed[-1])
            here.policy.make_old(size, np.concatenate(warmed))
        if not here.blocks.cold:
            self._coldest.clear()

    def _know(self, adoption: Adoption) -> list[Effect]:
        """The ledger is read: from here on we answer."""
        self._reading, self._adopted = None, adoption
        here = self._residency
        here.adopt(adoption)
        self._counts["blocks_adopted"] += len(here.blocks)
        self._counts["records_voided"] += len(adoption.nonsense)
        facts = (("blocks", len(here.blocks)), ("records_voided", len(adoption.nonsense)))
        note: list[Effect] = [Note("blocks_adopted", facts)] if len(here.blocks) else []
        effects = self._recovery.begin()
        for first in range(0, len(adoption.nonsense), LIST_MAX):
            voided = tuple(adoption.nonsense[first : first + LIST_MAX])
            effects += self._member.tell(ALLOCATOR, Freed(voided))
        return effects + note
