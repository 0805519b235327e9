"""Pool and ledger as a child maps them: the very files that Welcome means."""

import threading

from pegaflow.core.pool.geometry import Geometry
from pegaflow.device.memory import SharedFile
from pegaflow.wire.control import Welcome
from pegaflow.wire.values import Address

from .member import Member


def pool_file(welcome: Welcome, supervisor: Address) -> SharedFile:
    """The pool that this supervisor means, for writing.

    Raises:
        OSError, UserError: as of SharedFile.open.
    """
    device, inode = welcome.pool_file
    return SharedFile.open(welcome.pool_path, (device, inode), supervisor.incarnation)


def ledger_file(welcome: Welcome, supervisor: Address, *, write: bool = True) -> SharedFile:
    """The ledger that this supervisor means.

    Args:
        write: map it for writing too.

    Raises:
        OSError, UserError: as of SharedFile.open.
    """
    device, inode = welcome.ledger_file
    known, service = (device, inode), supervisor.incarnation
    return SharedFile.open(welcome.ledger_path, known, service, write=write)


class Mapped:
    """Both files of one child, for writing, each opened when it is used first, by whichever thread,
    and once: see locks.py."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._opening = threading.Lock()
        self._pool: SharedFile | None = None
        self._ledger: SharedFile | None = None

    @property
    def welcome(self) -> Welcome:
        """What names the files; no job comes before it."""
        assert self._member.welcome is not None
        return self._member.welcome

    @property
    def geometry(self) -> Geometry:
        """The pool's."""
        return Geometry(self.welcome.pool_bytes, self.welcome.extent_bytes)

    def pool(self) -> SharedFile:
        """The pool; raises as `pool_file`."""
        with self._opening:
            if self._pool is None:
                self._pool = pool_file(self.welcome, self._member.supervisor)
            return self._pool

    def ledger(self) -> SharedFile:
        """The ledger; raises as `ledger_file`."""
        with self._opening:
            if self._ledger is None:
                self._ledger = ledger_file(self.welcome, self._member.supervisor)
            return self._ledger
