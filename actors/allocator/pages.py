"""The slab: who has which page of the pool.  Nobody but the allocator writes it."""

from pegaflow.actors.runtime.contract import Part
from pegaflow.core.pool.slab import Slab


class Pages(Part):
    """The slab, once it is known."""

    def __init__(self) -> None:
        self.slab: Slab | None = None

    def free(self, page_size: int) -> int:
        """Pages of this size that can be granted."""
        assert self.slab is not None
        return self.slab.free_pages(page_size)

    def gauges(self) -> dict[str, int]:
        """Where the bytes of the pool are."""
        if self.slab is None:
            return {}
        t = self.slab.totals()
        return {
            "pool_capacity_bytes": t.total_bytes,
            "pool_free_bytes": t.free_bytes,
            "pool_held_bytes": t.granted_bytes,
            "pool_sealed_bytes": t.left_bytes,
            "pool_absent_bytes": t.absent_bytes,
            "pool_waste_bytes": t.waste_bytes,
        }

    def check(self) -> None:
        """The slab's own books."""
        if self.slab is not None:
            self.slab.check()
