"""The device of the index: it writes the ledger itself, so it has no jobs."""

import os

from pegaflow.actors.runtime.loop import Loop
from pegaflow.actors.runtime.mapped import ledger_file
from pegaflow.core.errors import UserError
from pegaflow.core.pool.hazards import HazardReader
from pegaflow.core.pool.ledger import Ledger
from pegaflow.core.pool.table import Table
from pegaflow.device import membarrier
from pegaflow.device.memory import SharedFile
from pegaflow.wire.control import Welcome
from pegaflow.wire.index import HazardFile
from pegaflow.wire.jobs import Result
from pegaflow.wire.message import Message
from pegaflow.wire.values import Address

_BLOCK_BYTES = 512
"""Unit of st_blocks."""


class IndexMemory:
    """The memory of this host, as `Memory` wants it."""

    def __init__(self, supervisor: Address) -> None:
        self._supervisor = supervisor

    def open(self, welcome: Welcome) -> tuple[Ledger, Table]:
        """The ledger that this supervisor means, and its table.

        Raises:
            UserError: it cannot be mapped.
        """
        try:
            file = ledger_file(welcome, self._supervisor)
        except OSError as err:
            raise UserError(
                f"cannot map {err.filename}: {err.strerror}; restart the service"
            ) from None
        ledger = Ledger(file.map, file.read)
        return ledger, Table(file.map, ledger.records, file.reserve)

    def open_hazards(self, msg: HazardFile) -> HazardReader | str:
        """The very file, if every byte of it is there: to touch a hole may end this process."""
        try:
            file = SharedFile.peek(msg.path)
        except OSError as err:
            return f"cannot open {msg.path}: {err.strerror}"
        except ValueError:
            return "its path is none"
        except UserError as err:
            return str(err)
        try:
            if file.id != tuple(msg.file):
                return f"{msg.path} is another file by now"
            if os.fstat(file.fd).st_blocks * _BLOCK_BYTES < file.length:
                return f"{msg.path} has holes"
            return HazardReader.fault(file.map) or HazardReader(file.map)
        finally:
            file.close()  # the reader keeps the mapping

    def barrier(self) -> str:
        """See membarrier.py."""
        return membarrier.barrier()


class IndexDevice:
    """Nothing to carry out."""

    def attach(self, loop: Loop) -> None:
        """Nothing completes later."""

    def work(self, number: int, job: Message) -> Result | None:
        """No job is the index's."""
        raise AssertionError(job)

    def close(self) -> None:
        """Nothing: what it has mapped ends with the process."""
