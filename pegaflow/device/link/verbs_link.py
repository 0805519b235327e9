"""The reader's side of RDMA: a link, whose thread posts READs and waits for them.

The thread does everything: it takes pieces for each queue pair that has room (verbs_flow.py),
posts them, sees what has come, gives the queue pairs more to do, and only then makes the checksums
of what is here, while the NICs work.  It sleeps on the channels' files and on one that `read` and
`close` wake it by.  Before it sleeps it asks for the next event and looks once more, for a
completion that is there already makes none.

**When pages are the reader's again.**  A READ that is on its way writes until it ends, whatever
anybody wants.  A queue pair that has failed, or that still has bytes on their way GRACE_NS after
their deadline, or when the link is closed, is therefore closed: from then on the NIC touches
nothing on its behalf, and only then is anything said about its pieces.  Any completion with an
error means that the queue pair is of no use any more.  Which error it is matters little: a dead
peer is RETRY_EXC_ERR or, in the middle of a transfer, REM_ACCESS_ERR; our own link that is down is
LOC_QP_OP_ERR.

The thread reads the owner's table of keys first, which also shows that the link works, and again
when a piece lies where there was no key.
"""

import mmap
import os
import select
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from pegaflow.core.segments.codec import page_sum
from pegaflow.wire.status import Status
from pegaflow.wire.units import Count, Nanoseconds

from . import Done, Outcome, Piece
from .tcpbatches import check
from .verbs_flow import QUEUE_RUNS, Chain, Fetch, Flow, Lane
from .verbs_nic import Nic, Queue, Region, Requests, VerbsError
from .verbs_offer import Offer, Served
from .verbs_plan import Keys, Run, node_of, runs
from .verbs_pool import RegisteredPool, address_of

GRACE_NS: Nanoseconds = 100_000_000
"""What is on its way at the deadline may take so much longer: 64 MiB need 64 ms at 1 GB/s, and to
cut it off costs the queue pair."""

COMPLETIONS: Count = 64
"""Taken at a time."""

_WAYS = {2, 5, 12, 13}  # LOC_QP_OP, WR_FLUSH, RETRY_EXC and RNR_RETRY_EXC: no READ is to blame
_STATUSES = (
    "SUCCESS LOC_LEN LOC_QP_OP LOC_EEC_OP LOC_PROT WR_FLUSH MW_BIND BAD_RESP LOC_ACCESS "
    "REM_INV_REQ REM_ACCESS REM_OP RETRY_EXC RNR_RETRY_EXC"
).split()  # enum ibv_wc_status


class _Lane(Lane):
    """A queue pair that works."""

    def __init__(self, queue: Queue, served: Served, ends: tuple[Keys, Keys]) -> None:
        super().__init__((queue.nic.node, served.end.node))
        self.queue = queue
        self.served = served
        self.ends = ends  # our keys, and the owner's
        self.largest = served.end.largest  # bytes of one READ


class VerbsLink:
    """See `Link`.

    Args:
        pool: ours.
        offer: the owner's.
        queues: connected, and whose end each is; owned from now on.
    """

    def __init__(
        self, pool: RegisteredPool, offer: Offer, queues: Sequence[tuple[Queue, Served, int]]
    ) -> None:
        self.why = ""  # what the last queue pair that broke has died of
        self.ready = threading.Event()  # the owner's keys are known, or no queue pair is left
        self._pool = pool
        self._offer = offer
        self._flow = Flow()
        self._lanes = [self._lane(queue, served, largest) for queue, served, largest in queues]
        self._requests = Requests(pool.nics[0].lib, QUEUE_RUNS)
        self._table = mmap.mmap(-1, max(offer.table_bytes, mmap.PAGESIZE))
        self._regions: dict[Nic, Region] = {}  # of the table, by NIC
        self._asking: _Lane | None = None  # which reads the table now
        self._here: list[tuple[Fetch, int]] = []  # pieces whose bytes have come
        self._new: deque[Fetch] = deque()  # from `read`, for the thread
        self._lock = threading.Lock()  # for _new, _over and the waking of the thread
        self._over = False  # nothing is taken any more
        self._closing = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._wake, select.POLLIN)
        for lane in self._lanes:
            self._poll.register(lane.queue.fd, select.POLLIN)
        self._thread = threading.Thread(target=self._run, name="verbs-link", daemon=True)
        self._thread.start()

    @property
    def streams(self) -> int:
        """See `Link.streams`."""
        return len(self._lanes)

    def read(self, lease: int, pieces: Sequence[Piece], done: Done, deadline: int) -> None:
        """See `Link.read`; the owner's NIC knows no leases."""
        offer, pool = self._offer, self._pool
        check(pieces, len(pool.view))
        for piece in pieces:
            if piece.local + piece.bytes > pool.registered:
                raise ValueError(f"{piece.bytes} bytes at {piece.local} are not registered yet")
        nodes = [
            (
                node_of(piece.local, pool.extent, pool.nodes),
                node_of(piece.remote, offer.extent, offer.nodes),
            )
            for piece in pieces
        ]
        fetch = Fetch(pieces, nodes, done, deadline)
        with self._lock:
            over = self._over
            if not over:
                self._new.append(fetch)
                os.eventfd_write(self._wake, 1)
        if over:
            fetch.give_up(Status.DISCONNECTED if self._closing else Status.PEER_GONE)
            fetch.end()

    def close(self) -> None:
        """See `Link.close`."""
        with self._lock:
            self._closing = True
            if not self._over:
                os.eventfd_write(self._wake, 1)
        self._thread.join()

    # the link's thread

    def _run(self) -> None:
        try:
            self._ask_keys()
            while self._lanes and not self._closing:
                self._turn()
            self._end()
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def _turn(self) -> None:
        with self._lock:
            while self._new:
                self._flow.start(self._new.popleft())
        had = len(self._lanes)
        moved = [lane for lane in list(self._lanes) if self._collect(lane)]
        now = time.monotonic_ns()
        for late in self._flow.late(self._lanes, now - GRACE_NS):
            self._lose(late, "its bytes came too late", blame=False)
        self._flow.expire(now)
        while any([self._fill(lane) for lane in list(self._lanes)]):
            pass  # a chain for each in turn
        if self._flow.parked and self._asking is None:
            self._ask_keys()
        self._judge()
        for fetch in self._flow.ended():
            fetch.end()
        if not moved and len(self._lanes) == had:
            self._sleep()

    def _fill(self, lane: "_Lane") -> bool:
        """Post a chain on a queue pair; whether there was one, and room for it."""
        if lane not in self._lanes:
            return False  # lost meanwhile
        chain = self._flow.take(lane, lambda piece: self._plan(lane, piece))
        if chain is not None:
            self._post(lane, chain)
        return chain is not None

    def _plan(self, lane: "_Lane", piece: Piece) -> list[Run]:
        if not lane.ends[1].covers(piece.remote, piece.bytes):
            return []
        return runs((piece.local, piece.remote), piece.bytes, lane.ends, lane.largest)

    def _post(self, lane: "_Lane", chain: Chain) -> None:
        try:
            lane.queue.post(self._requests.chain(chain.runs, chain.serial))
        except VerbsError as err:
            self._lose(lane, str(err), blame=False)

    def _collect(self, lane: "_Lane") -> bool:
        """See what has come on a queue pair; whether anything has."""
        if lane not in self._lanes:
            return False  # lost meanwhile, with another's failure
        try:
            found = lane.queue.poll(COMPLETIONS)
        except VerbsError as err:
            self._lose(lane, str(err), blame=False)
            return True
        for serial, status in found:
            if status:
                name = _STATUSES[status] if status < len(_STATUSES) else str(status)
                self._lose(lane, f"{name}_ERR", blame=status not in _WAYS)
                break
            chain = lane.landed(serial)
            if chain.items:
                self._here += chain.items
            else:
                self._learn()
        return bool(found)

    def _lose(self, lane: "_Lane", why: str, *, blame: bool) -> None:
        """A queue pair is of no use any more."""
        self.why = f"{lane.queue.nic.name}: {why}"
        self._poll.unregister(lane.queue.fd)
        lane.queue.close()
        self._lanes.remove(lane)
        self._flow.lost(lane, blame=blame)
        if self._asking is lane:
            self._asking = None
            self._ask_keys()

    def _judge(self) -> None:
        """Make the checksums of what has come."""
        here, self._here = self._here, []
        view = self._pool.view
        for fetch, index in here:
            piece = fetch.pieces[index]
            here_sum = page_sum(view[piece.local : piece.local + piece.bytes])
            differs = piece.sum is not None and piece.sum != here_sum
            status = Status.CORRUPT if differs else Status.OK
            fetch.settle(index, Outcome(status, here_sum, piece.sum))

    def _sleep(self) -> None:
        had = list(self._lanes)
        for lane in had:
            try:
                if lane.chains:
                    lane.queue.arm()
            except VerbsError as err:
                self._lose(lane, str(err), blame=False)
        if any([self._collect(lane) for lane in had]) or len(self._lanes) < len(had):
            return
        now = time.monotonic_ns()
        at = self._flow.wake_at(now, GRACE_NS)
        ready = self._poll.poll(None if at is None else (at - now) / 1e6 + 1)
        for fd, _ in ready:
            if fd == self._wake:
                with suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
            for lane in list(self._lanes):
                try:
                    if fd == lane.queue.fd:
                        lane.queue.hear()
                except VerbsError as err:
                    self._lose(lane, str(err), blame=False)

    # the owner's keys

    def _lane(self, queue: Queue, served: Served, largest: int) -> "_Lane":
        pool, offer = self._pool, self._offer
        none = [0] * (offer.table_bytes // 8 // offer.nics)
        theirs = Keys(offer.address, offer.length, chunk=offer.chunk, words=none)
        lane = _Lane(queue, served, (pool.keys[pool.nics.index(queue.nic)], theirs))
        lane.largest = min(largest, lane.largest)
        return lane

    def _ask_keys(self) -> None:
        """Read the table by some queue pair that has room; without any the link ends."""
        for lane in list(self._lanes):
            size, served = self._offer.table_bytes, lane.served
            try:
                region = self._regions.get(lane.queue.nic)
                if region is None:
                    region = lane.queue.nic.register(address_of(self._table), len(self._table))
                    self._regions[lane.queue.nic] = region
            except VerbsError as err:
                self._lose(lane, str(err), blame=False)
                continue
            here = Keys(address_of(self._table), size, chunk=size, words=[region.lkey])
            there = Keys(served.table, size, chunk=size, words=[served.key])
            chain = Chain(lane.serial + 1, runs=runs((0, 0), size, (here, there), lane.largest))
            if lane.runs + len(chain.runs) > QUEUE_RUNS:
                continue  # some other time: what is parked asks again
            lane.serial += 1
            lane.add(chain)
            self._asking = lane
            self._post(lane, chain)
            return

    def _learn(self) -> None:
        """The table is here."""
        self._asking = None
        with memoryview(self._table).cast("Q") as whole:
            words = whole[: self._offer.table_bytes // 8].tolist()
        for lane in self._lanes:
            lane.ends[1].words = words[lane.served.nic :: self._offer.nics]
        self.ready.set()
        self._flow.unpark(
            lambda piece: all(
                lane.ends[1].covers(piece.remote, piece.bytes) for lane in self._lanes
            )
        )

    def _end(self) -> None:
        """Nothing is on its way any more when anybody hears of it."""
        for lane in list(self._lanes):
            lane.queue.close()
            self._lanes.remove(lane)
            self._flow.lost(lane, blame=False)
        with self._lock:
            self._over = True
            while self._new:
                self._flow.start(self._new.popleft())
            os.close(self._wake)
        self._judge()
        self._flow.give_up(Status.DISCONNECTED if self._closing else Status.PEER_GONE)
        self.ready.set()
        for fetch in self._flow.ended():
            fetch.end()
        for nic, region in self._regions.items():
            nic.release(region)
        self._requests.close()
        self._table.close()
