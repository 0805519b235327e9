"""Pool and ledger as a child maps them, for writing: the very files that Welcome means."""

from pegaflow.device.memory import SharedFile
from pegaflow.wire.control import Welcome
from pegaflow.wire.values import Address


def pool_file(welcome: Welcome, supervisor: Address) -> SharedFile:
    """The pool that this supervisor means, for writing.

    Raises:
        OSError, UserError: as of SharedFile.open.
    """
    device, inode = welcome.pool_file
    return SharedFile.open(welcome.pool_path, (device, inode), supervisor.incarnation)


def ledger_file(welcome: Welcome, supervisor: Address) -> SharedFile:
    """The ledger that this supervisor means, for writing.

    Raises:
        OSError, UserError: as of SharedFile.open.
    """
    device, inode = welcome.ledger_file
    return SharedFile.open(welcome.ledger_path, (device, inode), supervisor.incarnation)
