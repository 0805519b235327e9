"""One RDMA device: its memory regions and its queue pairs, behind a door that can be closed safely.

pyverbs ends the process when anything of it is used that has been closed, and closes what belongs
to an object together with it.  So its objects stay within this file: numbers and keys are copied
when they come into being, whatever is used is looked at under its lock, children are closed before
what they belong to, and whatever is closed says so from then on (`Closed`).

Attributes of queue pairs are those with which soft-RoCE and the manual agree.  Traps of pyverbs'
defaults: with `timeout` 0 a dead peer is never noticed, with `max_rd_atomic` 0 nothing ever
completes, with `hop_limit` 1 no router is passed; a `max_dest_rd_atomic` above the device's
becomes 0.

Two things may hold the interpreter for longer than a call of the kernel's: the registration of a
chunk (verbs_plan.CHUNK_BYTES has how long), and a queue pair's first step towards an address where
nobody answers, for a second.  A second such address is not tried: the connection has failed by
then."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pegaflow.wire.units import Constant, Count

from . import LinkError
from .verbs_lib import Library, node_of_device, with_file
from .verbs_offer import End
from .verbs_plan import PORT_LEAST_BYTES, Run

TIMEOUT: Constant = 14
"""67 ms until a packet without an answer is sent again (4.096 us x 2^14)."""

RETRIES: Count = 6
"""Then the peer is gone, after half a second at least; 7 would mean for ever to some devices."""

READS: Count = 16
"""READs of one queue pair that the wire carries at a time: what all devices of the last ten years
can."""

HOP_LIMIT: Constant = 64

PORT: Constant = 1

_MIN_RNR_TIMER = 12
_RNR_RETRY = 7
_ACTIVE = 4  # enum ibv_port_state
_INFINIBAND = 1  # link layer
_ROCE_V2 = 2  # gid_type of query_gid_table; query_gid_type counts otherwise
_MAPPED = "0000:0000:0000:0000:0000:ffff:"  # IPv4 within IPv6
_LINK_LOCAL = "fe80:"

_CHANNELS = threading.Lock()  # one completion channel is made at a time: see with_file


class Closed(Exception):
    """It has been closed."""


class VerbsError(Exception):
    """What a device has refused.

    Args:
        code: errno, if there is one.
    """

    def __init__(self, what: str, code: int) -> None:
        super().__init__(what)
        self.code = code


class Region:
    """Registered memory: its keys, and the way to give it back."""

    def __init__(self, mr: Any) -> None:
        self.lkey = int(mr.lkey)
        self.rkey = int(mr.rkey)
        self._mr = mr

    def close(self) -> None:
        """Both keys are dead when it returns."""
        mr, self._mr = self._mr, None
        if mr is not None:
            mr.close()


class Nic:
    """An open device.

    Args:
        name: as in /sys/class/infiniband.

    Raises:
        VerbsError: it cannot be opened.
    """

    def __init__(self, lib: Library, name: str) -> None:
        self.lib = lib
        self.name = name
        self.node = node_of_device(name)
        self.lock = threading.RLock()  # of the device and all that belongs to it
        self.queues: set[Queue] = set()  # open ones
        self._regions: set[Region] = set()
        self._context: Any = None
        self._domain: Any = None
        try:
            self._context = lib.Context(name=name)
            self._domain = lib.PD(self._context)
            limits = self._context.query_device()
            self._reads = min(READS, int(limits.max_qp_rd_atom), int(limits.max_qp_init_rd_atom))
        except lib.Error as err:
            self.close()
            raise _refusal(f"{name} cannot be opened", err) from None

    def register(self, address: int, length: int) -> Region:
        """Let this device read and write memory, and other hosts read it.

        Args:
            address: writable memory of ours, which is really there.

        Raises:
            VerbsError: it is not allowed; errno says why.
        """
        access = self.lib.enums.IBV_ACCESS_LOCAL_WRITE | self.lib.enums.IBV_ACCESS_REMOTE_READ
        with self.lock:
            try:
                mr = self.lib.MR(self.domain, length=length, access=access, address=address)
            except self.lib.Error as err:
                raise _refusal(f"{self.name} cannot register {length} bytes", err) from None
            region = Region(mr)
            self._regions.add(region)
            return region

    def release(self, region: Region) -> None:
        """Undo `register`."""
        with self.lock:
            self._regions.discard(region)
            region.close()

    def address(self) -> tuple[bytes, int, dict[str, int]]:
        """Where this device is on its network, now: indices change when addresses come and go.

        Returns:
            Its GID, the GID's index, and of `End` lid, mtu, reads and largest.

        Raises:
            LinkError: it is on none.
        """
        with self.lock:
            try:
                port = self.context.query_port(PORT)
                entries = [
                    (str(entry.gid_str()), int(entry.gid_index), int(entry.gid_type))
                    for entry in self.context.query_gid_table(64)
                    if int(entry.port_num) == PORT
                ]
            except self.lib.Error as err:
                raise LinkError(f"{self.name}: {err}") from None
            if int(port.state) != _ACTIVE:
                raise LinkError(f"{self.name}: its port is down")
            infiniband = int(port.link_layer) == _INFINIBAND
            limits = {
                "lid": int(port.lid) if infiniband else 0,
                "mtu": int(port.active_mtu),
                "reads": self._reads,
                "largest": int(port.max_msg_sz),
            }
        if limits["largest"] < PORT_LEAST_BYTES:
            raise LinkError(f"{self.name}: carries {limits['largest']} bytes in a message at most")
        if not infiniband:
            entries = [entry for entry in entries if entry[2] == _ROCE_V2]
        text, index, _ = min(entries, key=_preference, default=("", -1, 0))
        if index < 0:
            raise LinkError(f"{self.name}: its port has no address for RoCE v2")
        return bytes.fromhex(text.replace(":", "")), index, limits

    @property
    def context(self) -> Any:
        """pyverbs' own, to be used under the lock."""
        if self._context is None:
            raise Closed(self.name)
        return self._context

    @property
    def domain(self) -> Any:
        """pyverbs' own, to be used under the lock."""
        if self._domain is None:
            raise Closed(self.name)
        return self._domain

    def close(self) -> None:
        """Nothing of this device touches our memory any more when it returns."""
        with self.lock:
            for queue in list(self.queues):
                queue.close()
            for region in self._regions:
                region.close()
            self._regions.clear()
            domain, self._domain = self._domain, None
            context, self._context = self._context, None
            for thing in (domain, context):
                if thing is not None:
                    thing.close()


class Queue:
    """A queue pair with its own completion queue, and its own channel if it is to post anything.

    Args:
        depth: READs that can be on their way, each of which may end with a completion; 0 for one
            that is only read from.

    Raises:
        VerbsError: the device has none left.
    """

    def __init__(self, nic: Nic, depth: int) -> None:
        self.nic = nic
        self.fd = -1  # readable when a completion has come after `arm`
        self._parts: list[Any] = []  # queue pair, completion queue, channel; empty: closed
        lib, e = nic.lib, nic.lib.enums
        with nic.lock:
            made: list[Any] = []
            try:
                channel = None
                if depth:
                    with _CHANNELS:
                        channel, self.fd = with_file(lambda: lib.CompChannel(nic.context))
                    made.append(channel)
                cq = lib.CQ(nic.context, depth + 1, None, channel=channel, comp_vector=0)
                made.insert(0, cq)
                room = lib.QPCap(
                    max_send_wr=depth or 1, max_recv_wr=1, max_send_sge=1, max_recv_sge=1
                )
                what = lib.QPInitAttr(qp_type=e.IBV_QPT_RC, scq=cq, rcq=cq, cap=room, sq_sig_all=0)
                first = lib.QPAttr(port_num=PORT)
                first.qp_access_flags = 0 if depth else e.IBV_ACCESS_REMOTE_READ
                qp = lib.QP(nic.domain, what, first)
                made.insert(0, qp)
                self.number = int(qp.qp_num)
            except lib.Error as err:
                for thing in made:
                    thing.close()
                raise _refusal(f"{nic.name} has no queue pair left", err) from None
            self._parts = made
            nic.queues.add(self)

    def connect(self, ours: End, index: int, theirs: End) -> None:
        """Make it work with the other host's.

        Args:
            ours: what the other side is told of this end.
            index: of our GID.

        Raises:
            LinkError: it cannot be reached.
            Closed: it is closed.
        """
        lib = self.nic.lib
        text = theirs.gid.hex()
        gid = ":".join(text[at : at + 4] for at in range(0, len(text), 4))
        attr = lib.QPAttr(port_num=PORT)
        attr.path_mtu = min(ours.mtu, theirs.mtu)
        attr.dest_qp_num, attr.rq_psn, attr.sq_psn = theirs.number, theirs.first, ours.first
        attr.max_rd_atomic = attr.max_dest_rd_atomic = min(ours.reads, theirs.reads)
        attr.min_rnr_timer, attr.rnr_retry = _MIN_RNR_TIMER, _RNR_RETRY
        attr.timeout, attr.retry_cnt = TIMEOUT, RETRIES
        with self.nic.lock:
            qp = self._part(0)
            try:
                route = lib.GlobalRoute(dgid=lib.GID(gid), sgid_index=index, hop_limit=HOP_LIMIT)
                attr.ah_attr = lib.AHAttr(gr=route, is_global=1, port_num=PORT, dlid=theirs.lid)
                qp.to_rtr(attr)
                qp.to_rts(attr)
            except lib.Error as err:
                raise LinkError(f"{self.nic.name} does not reach {gid}: {err}") from None

    def post(self, request: Any) -> None:
        """Have READs done; they are copied, so that the request may be used again.

        Raises:
            VerbsError: the device has refused some of them; others may be on their way.
            Closed: it is closed.
        """
        with self._calls():
            self._part(0).post_send(request)

    def poll(self, most: int) -> list[tuple[int, int]]:
        """Completions that have come: of each the number of its request, and the status (0:
        well)."""
        with self._calls():
            _, found = self._part(1).poll(most)
            return [(int(wc.wr_id), int(wc.status)) for wc in found]

    def arm(self) -> None:
        """Have `fd` become readable with the next completion; whoever waits polls once more
        first."""
        with self._calls():
            self._part(1).req_notify()

    def hear(self) -> None:
        """`fd` was readable."""
        with self._calls():
            cq = self._part(1)
            self._part(2).get_cq_event(cq)
            cq.ack_events(1)

    def close(self) -> None:
        """No READ of it touches memory any more when it returns."""
        with self.nic.lock:
            parts, self._parts = self._parts, []
            self.nic.queues.discard(self)
            for thing in parts:
                thing.close()

    @contextmanager
    def _calls(self) -> Iterator[None]:
        with self.nic.lock:
            try:
                yield
            except self.nic.lib.Error as err:
                raise _refusal(self.nic.name, err) from None

    def _part(self, number: int) -> Any:
        if not self._parts:
            raise Closed(f"a queue pair of {self.nic.name}")
        return self._parts[number]


class Requests:
    """A chain of work requests for READs, built once and used for every chain that is posted.

    A chain has one end, where it is signalled, so that fewer READs are its last ones.  What a
    request reads into is where its scatter list is: it is pointed at an SGE of ours, which can be
    changed; pyverbs would copy it.  To build both costs many times what it costs to change them.

    One thread uses it.
    """

    def __init__(self, lib: Library, count: int) -> None:
        e = lib.enums
        self._places = [lib.SGE(0, 0, 0) for _ in range(count)]
        self._wrs: list[Any] = []
        for number, place in enumerate(self._places):
            flags = e.IBV_SEND_SIGNALED if number == count - 1 else 0
            wr = lib.SendWR(
                wr_id=0, opcode=e.IBV_WR_RDMA_READ, num_sge=1, sg=[place], send_flags=flags
            )
            wr.sg_list = place
            if self._wrs:
                self._wrs[-1].next_wr = wr
            self._wrs.append(wr)

    def chain(self, runs: list[Run], serial: int) -> Any:
        """What `Queue.post` takes: these READs, in this order; valid until the next call.

        Args:
            serial: the number that the last one's completion has; others that fail have 0.
        """
        first = len(self._wrs) - len(runs)
        assert 0 <= first < len(self._wrs)
        for number, (here, lkey, length, there, rkey) in enumerate(runs, first):
            place = self._places[number]
            place.addr, place.length, place.lkey = here, length, lkey
            self._wrs[number].set_wr_rdma(rkey, there)
        self._wrs[-1].wr_id = serial
        return self._wrs[first]

    def close(self) -> None:
        """Give the memory back: each SGE's with the request that points at it."""
        wrs, self._wrs, self._places = self._wrs, [], []
        for wr in wrs:
            wr.close()


def _preference(entry: tuple[str, int, int]) -> tuple[bool, bool, int]:
    text, index, _ = entry
    return not text.startswith(_MAPPED), text.startswith(_LINK_LOCAL), index


def _refusal(what: str, err: Exception) -> VerbsError:
    code = getattr(err, "error_code", None)
    return VerbsError(f"{what}: {err}", code if isinstance(code, int) else 0)
