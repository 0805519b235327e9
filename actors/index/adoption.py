"""The blocks of an earlier life: the ledger is read when this one begins.

It is read step by step (core/blocks/adoption.py); what comes meanwhile waits.  What was adopted is
older than whatever is used later.
"""

from collections import Counter

from pegaflow.actors.roles.recovery import Recovery
from pegaflow.actors.runtime.contract import Effect, Note, Part
from pegaflow.actors.runtime.member import Member
from pegaflow.core.blocks.adoption import Adoption
from pegaflow.wire.allocator import Freed
from pegaflow.wire.control import Welcome
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

    def up(self, welcome: Welcome, now: int) -> list[Effect]:
        """Begin to read the ledger, which is mapped by now."""
        here = self._residency
        self._reading = Adoption(here.ledger, here.geometry, here.blocks, here.policy.make_old)
        return []

    def wake_at(self) -> int | None:
        """At once while the ledger is being read."""
        return 0 if self._reading is not None else None

    def wake(self, now: int) -> list[Effect]:
        """Read on."""
        reading = self._reading
        return self._know(reading) if reading is not None and not reading.step() else []

    def _know(self, adoption: Adoption) -> list[Effect]:
        """The ledger is read: from here on we answer."""
        self._reading = None
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
