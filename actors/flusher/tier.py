"""What the index is told of the tier as a whole: Tier, first of all, and whenever it changes."""

from pegaflow.actors.runtime.contract import Effect, Part
from pegaflow.actors.runtime.member import Member
from pegaflow.core.limits import MIB
from pegaflow.core.segments.codec import GROUP_ROWS
from pegaflow.wire.flusher import Tier
from pegaflow.wire.units import Bytes, Count
from pegaflow.wire.values import INDEX, Address

from .volumes import Volumes

BATCH_BYTES: Bytes = 8 * MIB
"""Bytes of one group: a disk is at its best from 1 MiB on, and a load waits behind one of them."""

BATCH_PARTS: Count = 4
"""Small blocks come in smaller groups: so many of them count as one batch."""


class TierState(Part):
    """What the tier can take, and what the index knows of that."""

    def __init__(self, member: Member, volumes: Volumes) -> None:
        self._member, self._volumes = member, volumes
        self.told: Tier | None = None  # what the index was told last
        self._ending = False  # nothing more is written

    def beat(self, now: int) -> list[Effect]:
        """Say it again: the last word may be lost."""
        return self._member.tell(INDEX, self.told) if self.told is not None else []

    def met(self, neighbour: Address, now: int) -> list[Effect]:
        """An index, perhaps in a new life, knows nothing."""
        if neighbour.name != INDEX:
            return []
        self.told = None
        return self.changed()

    def end_writes(self) -> list[Effect]:
        """Nothing is written any more, whatever becomes of the disks."""
        self._ending = True
        return self.changed()

    def changed(self) -> list[Effect]:
        """A volume is not what it was: tell the index, if it makes a difference to the tier."""
        tier = self._tier()
        if tier == self.told:
            return []
        self.told = tier
        return self._member.tell(INDEX, tier)

    def _tier(self) -> Tier:
        plan, room = self._volumes.plan, self._volumes.block_bytes
        return Tier(
            writable=any(v.open_to_writes for v in self._volumes) and not self._ending,
            depth=plan.write_queue_depth * BATCH_PARTS,
            window_bytes=plan.write_queue_depth * BATCH_BYTES,
            batch_blocks=GROUP_ROWS,
            batch_bytes=min(BATCH_BYTES, room // 2),
            block_bytes=room,
            prefetch=plan.max_prefetch_blocks if any(v.readable for v in self._volumes) else 0,
            reused_only=plan.reused_only,
        )
