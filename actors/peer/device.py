"""The device of the peer process: the transport between hosts, and the pool that it moves bytes of.

Owner and reader are opened by the first job, with the pool.  What they say comes from threads of
theirs and is handed to the loop as the end of a job.  Links are made by a thread of ours, since
that waits for the other host.
"""

import secrets
import socket
from collections.abc import Callable, Sequence

from pegaflow.actors.runtime.loop import Loop
from pegaflow.actors.runtime.mapped import Mapped
from pegaflow.actors.runtime.member import Member
from pegaflow.actors.runtime.tcp import Tcp
from pegaflow.actors.runtime.workers import Workers
from pegaflow.device.link import TOKEN_BYTES, Link, LinkError, Outcome, Piece
from pegaflow.device.link.tcp import TcpOwner, TcpReader
from pegaflow.device.link.tcpframes import FrameError, pack_offer, unpack_offer
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.jobs import Done, Result
from pegaflow.wire.message import Message
from pegaflow.wire.peerjobs import (
    AdmitReader,
    AskOfReader,
    ConnectHost,
    DismissReader,
    LeaveHost,
    LendPages,
    PagesRead,
    ReaderAdmitted,
    ReaderAsks,
    ReadPages,
    RecallPages,
)
from pegaflow.wire.status import Status
from pegaflow.wire.units import Count
from pegaflow.wire.values import REMOTE_PEER

LINKERS: Count = 4
"""Threads that make and close links: a host that does not answer keeps one of them for seconds."""


class PeerDevice:
    """The job records of the peer process, carried out.

    Args:
        door: where other hosts are answered; their streams come to the next port.
    """

    def __init__(self, member: Member, door: Tcp) -> None:
        self._door = door
        self._mapped = Mapped(member)
        self._owner: TcpOwner | None = None
        self._reader: TcpReader | None = None
        self._links: dict[Incarnation, Link] = {}  # by host
        self._linkers = Workers()
        self._linkers.grow(LINKERS)

    def attach(self, loop: Loop) -> None:
        """Deliver completions into this loop; let it hear other hosts."""
        loop.bind_tcp(self._door, REMOTE_PEER)
        self._linkers.deliver_to(loop)

    def work(self, number: int, job: Message) -> Result | None:
        """Do it, or leave it to a thread."""
        try:
            owner, reader = self._open()
        except OSError as err:
            return Done(Status.COPY_FAILED, f"cannot serve other hosts: {err.strerror}")
        if isinstance(job, AskOfReader):
            return ReaderAsks(reader.ask())
        if isinstance(job, AdmitReader):
            return _admit(owner, job)
        if isinstance(job, DismissReader):
            owner.dismiss(job.reader)
            return Done(Status.OK)
        if isinstance(job, LendPages):
            return _lend(owner, job)
        if isinstance(job, RecallPages):
            owner.recall(job.loan, lambda: self._linkers.ended(number, Done(Status.OK)))
            return None
        if isinstance(job, ConnectHost):
            self._linkers.put(number, lambda: self._connect(reader, job))
            return None
        if isinstance(job, LeaveHost):
            self._linkers.put(number, lambda: self._leave(job.host))
            return None
        assert isinstance(job, ReadPages), job
        return self._read(number, job)

    def close(self) -> None:
        """Cut off everybody."""
        if self._reader is not None:
            self._reader.close()
        if self._owner is not None:
            self._owner.close()

    def _open(self) -> tuple[TcpOwner, TcpReader]:
        if self._owner is None or self._reader is None:
            pool = memoryview(self._mapped.pool().map)
            port = self._door.port + 1 if self._door.port else 0
            self._owner = TcpOwner(pool, (self._door.host, port))
            self._reader = TcpReader(pool)
        return self._owner, self._reader

    def _connect(self, reader: TcpReader, job: ConnectHost) -> Result:
        """In a thread: wait for the other host."""
        try:
            family = socket.AF_INET6 if ":" in job.where else socket.AF_INET  # as it was dialled
            found = socket.getaddrinfo(job.where, None, family, socket.SOCK_STREAM)
            link = reader.connect(_at(job.offer, str(found[0][4][0])), job.token)
        except (OSError, LinkError, FrameError, ValueError) as err:
            return Done(Status.DISCONNECTED, str(err))
        before = self._links.pop(job.host, None)
        self._links[job.host] = link
        if before is not None:
            before.close()
        return Done(Status.OK)

    def _leave(self, host: Incarnation) -> Result:
        link = self._links.pop(host, None)
        if link is not None:
            link.close()
        return Done(Status.OK)

    def _read(self, number: int, job: ReadPages) -> Result | None:
        link = self._links.get(job.host)
        if link is None:
            return PagesRead((0,) * len(job.local), broken=True)
        pieces = [
            Piece(remote, local, job.payload_bytes)
            for remote, local in zip(job.remote, job.local, strict=True)
        ]
        try:
            link.read(job.loan, pieces, self._ended(number, link), job.deadline)
        except ValueError:  # a page that no link takes, or is not one of ours
            return PagesRead((0,) * len(job.local))
        return None

    def _ended(self, number: int, link: Link) -> Callable[[Sequence[Outcome]], None]:
        def ended(outcomes: Sequence[Outcome]) -> None:
            sums = tuple(o.here if o.status is Status.OK else 0 for o in outcomes)
            self._linkers.ended(number, PagesRead(sums, broken=link.streams == 0))

        return ended


def _at(offer: bytes, host: str) -> bytes:
    """The offer of an owner that is reached by this address, whatever it takes for its own."""
    return pack_offer(unpack_offer(offer)._replace(host=host))


def _admit(owner: TcpOwner, job: AdmitReader) -> Result:
    token = secrets.token_bytes(TOKEN_BYTES)
    try:
        return ReaderAdmitted(owner.admit(job.reader, token, job.ask), token)
    except ValueError as err:
        return Done(Status.BUSY, str(err))


def _lend(owner: TcpOwner, job: LendPages) -> Result:
    extents = [(offset, job.payload_bytes) for offset in job.offsets]
    try:
        owner.lend(job.loan, job.reader, extents)
    except ValueError as err:
        return Done(Status.BAD_REQUEST, str(err))
    return Done(Status.OK)
