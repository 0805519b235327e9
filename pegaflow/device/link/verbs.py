"""The RDMA transport: the owner's NICs are read from, and its processor has no part in it.

    nics = open_nics(["mlx5_0", "mlx5_1"])
    pool = RegisteredPool(view, nics)                 once, for both directions
    for registered in pool.register(len(view)): ...   in a thread of its own, as the pool grows
    owner, reader = VerbsOwner(pool), VerbsReader(pool)

A reader's *ask* brings a queue pair for each of its NICs; the owner makes as many, connects them,
and answers with its ends (verbs_offer.py); the reader connects its own, and reads.  To connect
again is a new ask.

What is different from a transport in which the owner sends (see the package):

* A lease is known to the actors alone.  The NIC lets whoever is admitted read whatever is
  registered, lent or not, and nobody is asked.  So `recall` gives back at once, and a READ that
  runs meanwhile may bring bytes of two blocks: mostly it does.  That is why a piece whose checksum
  nobody has told (`Piece.sum`) is worth nothing here, and why keys are given to admitted hosts
  alone.
* Dismissed is closed: the queue pairs are gone when `dismiss` returns.
* The token proves nothing that the queue pair's own numbers do not.
* An owner that is stopped goes on being read.  A reader that is gone is noticed by nobody, and its
  queue pairs stay until it is dismissed, or has been admitted KEPT times more.
"""

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from pegaflow.wire.identities import Incarnation
from pegaflow.wire.units import Count

from . import CONNECT_S, Extent, LinkError
from .verbs_flow import QUEUE_RUNS
from .verbs_link import VerbsLink
from .verbs_nic import Nic, Queue, VerbsError
from .verbs_offer import (
    ENDS_MAX,
    End,
    Offer,
    Served,
    pack_ask,
    pack_offer,
    unpack_ask,
    unpack_offer,
)
from .verbs_plan import Port, pairs
from .verbs_pool import RegisteredPool, open_nics

__all__ = ["RegisteredPool", "VerbsOwner", "VerbsReader", "open_nics"]

KEPT: Count = 2
"""Links of one reader: that in use, and one that replaces it."""

VERBS_READERS_MAX: Count = 256
"""A fleet that asks everybody for everything has a directory; each reader costs a queue pair per
NIC."""

UNREACHED: Count = 1
"""NICs of a reader that do not answer, and are left out: each costs a second in which nothing else
of the process runs."""

ASKS_MAX: Count = 8
"""Not answered yet; the oldest is dropped for a new one."""

_PACKETS = 1 << 24


class VerbsOwner:
    """See `Owner`.

    Args:
        pool: that is lent; stays the caller's.
    """

    def __init__(self, pool: RegisteredPool) -> None:
        self._pool = pool
        self._lock = threading.Lock()  # for all of this
        self._admitted: dict[Incarnation, deque[list[Queue]]] = {}  # oldest link first
        self._leases: dict[int, Incarnation] = {}

    def admit(self, reader: Incarnation, token: bytes, ask: bytes) -> bytes:
        """See `Owner.admit`.

        Raises:
            ValueError: the ask makes no sense, or there are too many readers.
            LinkError: the reader's NICs cannot be reached from ours.
        """
        number, theirs = unpack_ask(ask)
        with self._lock:
            if reader not in self._admitted and len(self._admitted) >= VERBS_READERS_MAX:
                raise ValueError(f"there are {VERBS_READERS_MAX} readers")
        ends = self._connect(theirs)
        with self._lock:
            links = self._admitted.setdefault(reader, deque())
            links.append([queue for queue, _ in ends])
            while len(links) > KEPT:
                _close(links.popleft())
        return pack_offer(
            Offer(
                ask=number,
                address=self._pool.keys[0].address,
                length=len(self._pool.view),
                chunk=self._pool.chunk,
                nics=len(self._pool.nics),
                extent=self._pool.extent,
                nodes=self._pool.nodes,
                served=tuple(served for _, served in ends),
            )
        )

    def _connect(self, theirs: Sequence[End]) -> list[tuple[Queue, Served]]:
        """A queue pair for each of a reader's that can be reached; takes a second for one that
        cannot."""
        nics, ports, why = [], [], LinkError("no NIC")
        for nic in self._pool.nics:
            try:
                ports.append(Port(nic.node, nic.address()[0]))
                nics.append(nic)
            except LinkError as err:
                why = err
        if not nics:
            raise why
        used = [len(nic.queues) for nic in nics]
        chosen = pairs([Port(end.node, end.gid) for end in theirs], ports, used)
        found, failed = [], 0
        with ExitStack() as undo:
            for place, (end, which) in enumerate(zip(theirs, chosen, strict=True)):
                queue, ours, index = _end(nics[which], 0)
                undo.callback(queue.close)
                try:
                    queue.connect(ours, index, end)
                except LinkError:
                    failed += 1
                    if failed > UNREACHED or failed == len(theirs):
                        raise
                    queue.close()
                    continue
                column = self._pool.nics.index(nics[which])
                table, key = self._pool.table, self._pool.table_keys[column]
                one = Served(reader=place, nic=column, table=table, key=key, end=ours)
                found.append((queue, one))
            undo.pop_all()
        return found

    def dismiss(self, reader: Incarnation) -> None:
        """See `Owner.dismiss`."""
        with self._lock:
            for queues in self._admitted.pop(reader, ()):
                _close(queues)

    def lend(self, lease: int, reader: Incarnation, extents: Sequence[Extent]) -> None:
        """See `Owner.lend`; the NIC is not asked."""
        for offset, size in extents:
            if offset < 0 or size < 1 or offset + size > len(self._pool.view):
                raise ValueError(f"{size} bytes at {offset} are not of our pool")
        with self._lock:
            if lease in self._leases:
                raise ValueError(f"lease {lease} is lent")
            self._leases[lease] = reader

    def recall(self, lease: int, back: Callable[[], None]) -> None:
        """See `Owner.recall`; at once, for a READ cannot be recalled."""
        with self._lock:
            self._leases.pop(lease, None)
        back()

    def close(self) -> None:
        """See `Owner.close`."""
        with self._lock:
            for links in self._admitted.values():
                for queues in links:
                    _close(queues)
            self._admitted.clear()
            self._leases.clear()


class VerbsReader:
    """See `Reader`.

    Args:
        pool: where pieces go to; stays the caller's.
    """

    def __init__(self, pool: RegisteredPool) -> None:
        self._pool = pool
        self._lock = threading.Lock()  # for all of this
        self._asked: dict[int, list[tuple[Queue, End]]] = {}  # by number, oldest first
        self._links: set[VerbsLink] = set()  # that have not been closed; broken ones too

    def ask(self) -> bytes:
        """See `Reader.ask`.

        Raises:
            LinkError: no NIC is on a network.
        """
        ends: list[tuple[Queue, End]] = []
        why = LinkError("no NIC")
        for nic in self._pool.nics[:ENDS_MAX]:
            try:
                queue, end, _ = _end(nic, QUEUE_RUNS)
            except LinkError as err:
                why = err
                continue
            ends.append((queue, end))
        if not ends:
            raise why
        number = secrets.randbits(32)
        with self._lock:
            if len(self._asked) >= ASKS_MAX:
                _close([queue for queue, _ in self._asked.pop(next(iter(self._asked)))])
            self._asked[number] = ends
        return pack_ask(number, [end for _, end in ends])

    def connect(self, offer: bytes, token: bytes) -> VerbsLink:
        """See `Reader.connect`."""
        deadline = time.monotonic() + CONNECT_S
        told = unpack_offer(offer)
        with self._lock:
            ends = self._asked.pop(told.ask, None)
        if ends is None:
            raise LinkError("an offer to nothing that was asked")
        with ExitStack() as undo:
            for queue, _ in ends:
                undo.callback(queue.close)
            queues = []
            for served in told.served:
                if served.reader >= len(ends):
                    raise LinkError(f"an offer for queue pair {served.reader} of {len(ends)}")
                queue, ours = ends[served.reader]
                gid, index, limits = queue.nic.address()
                if gid != ours.gid:
                    raise LinkError(f"{queue.nic.name}: its address has changed")
                queue.connect(ours, index, served.end)
                queues.append((queue, served, limits["largest"]))
            undo.pop_all()
            used = [queue for queue, _, _ in queues]
            _close([queue for queue, _ in ends if queue not in used])
        link = VerbsLink(self._pool, told, queues)
        link.ready.wait(max(deadline - time.monotonic(), 0))
        if not link.ready.is_set() or not link.streams:
            link.close()
            raise LinkError(link.why or "the owner's NIC does not answer")
        with self._lock:
            self._links = {one for one in self._links if one.streams} | {link}
        return link

    def close(self) -> None:
        """See `Reader.close`."""
        with self._lock:
            links, self._links = self._links, set()
            asked, self._asked = self._asked, {}
        for link in links:
            link.close()
        for ends in asked.values():
            _close([queue for queue, _ in ends])


def _end(nic: Nic, depth: int) -> tuple[Queue, End, int]:
    """A new queue pair, what the other side is told of it, and the index of our address.

    Raises:
        LinkError: the device is on no network, or has none left.
    """
    gid, index, limits = nic.address()
    try:
        queue = Queue(nic, depth)
    except VerbsError as err:
        raise LinkError(str(err)) from None
    first = secrets.randbelow(_PACKETS)
    end = End(gid=gid, number=queue.number, first=first, node=nic.node, **limits)
    return queue, end, index


def _close(queues: Sequence[Queue]) -> None:
    for queue in queues:
        queue.close()
