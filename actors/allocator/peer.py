"""The index, as far as the allocator knows of it."""

from pegaflow.actors.runtime.contract import Effect, Part
from pegaflow.wire.values import NOBODY, Address


class IndexPeer(Part):
    """The living index, and the lives that it has fenced."""

    def __init__(self) -> None:
        self.address = NOBODY  # of the index that has dialled us
        self.fenced: set[Address] = set()  # whose death we have not heard of yet

    @property
    def is_there(self) -> bool:
        """Whether an index has dialled us and lives."""
        return self.address != NOBODY

    def gone(self, dead: Address, now: int) -> list[Effect]:
        """From here on the shell drops what the dead one had queued."""
        self.fenced.discard(dead)
        if dead == self.address:
            self.address = NOBODY
        return []
