"""The device of the index: it writes the ledger itself, so it has no jobs."""

from pegaflow.actors.runtime.loop import Loop
from pegaflow.actors.runtime.mapped import ledger_file
from pegaflow.core.errors import UserError
from pegaflow.core.pool.ledger import Ledger
from pegaflow.wire.control import Welcome
from pegaflow.wire.jobs import Result
from pegaflow.wire.message import Message
from pegaflow.wire.values import Address


def open_ledger(welcome: Welcome, supervisor: Address) -> Ledger:
    """The ledger that this supervisor means.

    Raises:
        UserError: it cannot be mapped.
    """
    try:
        file = ledger_file(welcome, supervisor)
    except OSError as err:
        raise UserError(f"cannot map {err.filename}: {err.strerror}; restart the service") from None
    return Ledger(file.map, file.read)


class IndexDevice:
    """Nothing to carry out."""

    def attach(self, loop: Loop) -> None:
        """Nothing completes later."""

    def work(self, number: int, job: Message) -> Result | None:
        """No job is the index's."""
        raise AssertionError(job)

    def close(self) -> None:
        """Nothing: what it has mapped ends with the process."""
