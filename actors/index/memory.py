"""What the index maps, and what it asks of the machine: given to it by whoever starts it."""

from typing import Protocol

from pegaflow.core.pool.hazards import HazardReader
from pegaflow.core.pool.ledger import Ledger
from pegaflow.core.pool.table import Table
from pegaflow.wire.control import Welcome
from pegaflow.wire.index import HazardFile


class Memory(Protocol):
    """Shared memory, as the index sees it."""

    def open(self, welcome: Welcome) -> tuple[Ledger, Table]:
        """The ledger that Welcome names, and the table behind its records, both for writing."""

    def open_hazards(self, msg: HazardFile) -> HazardReader | str:
        """Map a session's file of hazards.

        Returns:
            Its reader, or in one line why it cannot be read.
        """

    def barrier(self) -> str:
        """What any registered process has stored before is visible to us from here on, and what it
        loads from here on is what we have stored.

        Returns:
            '', or in one line why that cannot be had.
        """
