"""Device work of the peer process, as jobs.py has that of the others.

What the transport between two hosts does is in pegaflow/device/link.  A host is named by the number
of its life between hosts (peer.py).  Offsets are in bytes, in the pool of the host that has the
pages.
"""

from .identities import Incarnation, LeaseId
from .jobs import Done, Job, Result
from .message import message
from .values import U64s


@message(350)
class ReaderAsks(Result):
    """What an owner has to know before it can admit us."""

    ask: bytes


@message(250)
class AskOfReader(Job[ReaderAsks | Done]):
    """What do we say to an owner?  Done: no host can be read from."""


@message(351)
class ReaderAdmitted(Result):
    """A host may connect one link."""

    offer: bytes
    token: bytes


@message(251)
class AdmitReader(Job[ReaderAdmitted | Done]):
    """Let a host read what will be lent to it."""

    reader: Incarnation
    ask: bytes


@message(252)
class DismissReader(Job[Done]):
    """It is gone: its links are cut."""

    reader: Incarnation


@message(253)
class LendPages(Job[Done]):
    """Let a host read these pages under this loan."""

    reader: Incarnation
    loan: LeaseId
    offsets: U64s
    payload_bytes: int


@message(254)
class RecallPages(Job[Done]):
    """Lend them no more; done when no byte of them is being read any more."""

    loan: LeaseId


@message(255)
class ConnectHost(Job[Done]):
    """Have a link to a host; one that we had is closed."""

    host: Incarnation
    where: str  # the name or address by which the place of that host is dialled
    offer: bytes
    token: bytes


@message(256)
class LeaveHost(Job[Done]):
    """Close the link."""

    host: Incarnation


@message(357)
class PagesRead(Result):
    """What has become of each page: its checksum as it lies here; 0: it was not read."""

    sums: U64s
    broken: bool = False  # the link is, and has to be connected anew


@message(257)
class ReadPages(Job[PagesRead | Done]):
    """Read these pages of a host, `payload_bytes` each, into these of ours."""

    host: Incarnation
    loan: LeaseId
    payload_bytes: int
    remote: U64s  # offsets in its pool
    local: U64s  # in ours
    deadline: int  # CLOCK_MONOTONIC, in nanoseconds
