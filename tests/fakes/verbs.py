"""pyverbs without a NIC: the calls that we use, in one process, with memory that is really moved.

It is as strict as pyverbs is unforgiving: what would end the process there, or would be lost
without a word, is an AssertionError here and is kept in `fabric.wrong`:

* Nothing is used after it was closed, and nothing is closed before what belongs to it.
* A request's memory is given back once, though an SGE's is shared with the request that points at
  it.
* A completion queue has room for every completion, also of requests that nobody has signalled.
* Queue pairs have the attributes without which nothing completes, or a dead peer is never noticed.

READs land later, in a thread of the fabric, in the order in which they were posted, and in two
halves: `between` is called in the middle of each, `hold` stops all of them.  A request that fails
takes its queue pair to ERR, and all after it are flushed."""

import ctypes
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pegaflow.device.link import verbs_lib

SUCCESS, LOC_QP_OP, LOC_PROT, FLUSHED, REM_INV, REM_ACCESS, RETRIED = 0, 2, 4, 5, 9, 10, 12
READ, SIGNALED, LOCAL_WRITE, REMOTE_READ, RC = 4, 2, 1, 4, 2
ENOMEM, EINVAL, ETIMEDOUT = 12, 22, 110  # errno
MTU_1024, MTU_4096 = 3, 5


class PyverbsError(Exception):
    pass


class PyverbsRDMAError(PyverbsError):
    def __init__(self, what: str, error_code: int = -1) -> None:
        super().__init__(f"{what}. Errno: {error_code}")
        self.error_code = error_code


class Device:
    """A NIC that is plugged in."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.gid = f"0000:0000:0000:0000:0000:ffff:0a4d:{number:04x}"
        self.up = True
        self.mtu = MTU_4096
        self.largest = 8 << 20
        self.memlock = 1 << 62  # bytes that may be registered


class Fabric:
    """All devices, what is on its way between them, and what was done wrong."""

    def __init__(self) -> None:
        self.devices: dict[str, Device] = {}
        self.wrong: list[str] = []
        self.lock = threading.RLock()
        self.work = threading.Condition(self.lock)
        self.queues: dict[tuple[str, int], QP] = {}  # by GID and number
        self.posted: deque[tuple[QP, SimpleNamespace]] = deque()
        self.regions: list[MR] = []
        self.between: Callable[[], None] = lambda: None
        self.held = False
        self.numbers = iter(range(17, 1 << 20))
        self.over = False
        self.thread = threading.Thread(target=self._move, name="fabric", daemon=True)
        self.thread.start()

    def plug(self, name: str) -> Device:
        self.devices[name] = Device(name, len(self.devices) + 1)
        return self.devices[name]

    def hold(self, held: bool) -> None:
        with self.lock:
            self.held = held
            self.work.notify_all()

    def blame(self, what: str) -> None:
        self.wrong.append(what)
        raise AssertionError(what)

    def until_posted(self, *names: str) -> None:
        """Wait until these devices have something to read."""
        with self.lock:
            assert self.work.wait_for(
                lambda: {qp.device.name for qp, _ in self.posted} >= set(names), 20
            )

    def close(self) -> None:
        with self.lock:
            self.over = True
            self.work.notify_all()
        self.thread.join()

    def _move(self) -> None:
        while True:
            with self.lock:
                self.work.wait_for(lambda: self.over or (self.posted and not self.held))
                if self.over:
                    return
                qp, wr = self.posted.popleft()
            self._read(qp, wr)

    def _read(self, qp: "QP", wr: SimpleNamespace) -> None:
        half = wr.length // 2 & -8
        for at, length in ((0, half), (half, wr.length - half)):
            with self.lock:
                if qp.closed:
                    return
                status = FLUSHED if qp.failed else self._judge(qp, wr)
                if status:
                    qp.complete(wr, status)
                    return
                ctypes.memmove(wr.here + at, wr.there + at, length)
            if not at:
                self.between()
        with self.lock:
            if not qp.closed:
                qp.complete(wr, SUCCESS)

    def _judge(self, qp: "QP", wr: SimpleNamespace) -> int:
        if not qp.device.up:
            return LOC_QP_OP
        other = self.queues.get((qp.peer_gid, qp.peer_number))
        if other is None or other.closed or not other.device.up or other.failed:
            return RETRIED
        ends = other.peer_gid, other.peer_number, other.first, other.peer_first
        if ends != (qp.device.gid, qp.qp_num, qp.peer_first, qp.first) or other.mtu != qp.mtu:
            return RETRIED
        if not other.access & REMOTE_READ:
            return REM_INV
        if not self._may(qp.pd, wr.lkey, (wr.here, wr.length), LOCAL_WRITE):
            return LOC_PROT
        if not self._may(other.pd, wr.rkey, (wr.there, wr.length), REMOTE_READ):
            other.failed = True
            return REM_ACCESS
        return SUCCESS

    def _may(self, pd: "PD", key: int, what: tuple[int, int], access: int) -> bool:
        start, length = what
        mine = [mr for mr in self.regions if mr.pd is pd and mr.key == key and mr.access & access]
        return any(mr.address <= start <= mr.address + mr.size - length for mr in mine)


fabric: Fabric


class Thing:
    """What pyverbs closes together with what it belongs to."""

    def __init__(self, *parents: "Thing") -> None:
        self.closed = False
        self.children: list[Thing] = []
        for parent in parents:
            parent.use()
            parent.children.append(self)

    def use(self) -> Any:
        if self.closed:
            fabric.blame(f"{type(self).__name__} used after it was closed")
        return self

    def close(self) -> None:
        if [child for child in self.children if not child.closed]:
            fabric.blame(f"{type(self).__name__} closed before what belongs to it")
        self.closed = True


class Context(Thing):
    def __init__(self, name: str) -> None:
        super().__init__()
        if name not in fabric.devices:
            raise PyverbsRDMAError(f"Failed to find device {name}")
        self.device = fabric.devices[name]

    def query_device(self) -> SimpleNamespace:
        self.use()
        return SimpleNamespace(max_qp_rd_atom=128, max_qp_init_rd_atom=128)

    def query_port(self, port: int) -> SimpleNamespace:
        self.use()
        d, state = self.device, 4 if self.device.up else 1
        limits = {"active_mtu": d.mtu, "max_msg_sz": d.largest}
        return SimpleNamespace(state=state, link_layer=2, lid=0, **limits)

    def query_gid_table(self, most: int) -> list[SimpleNamespace]:
        self.use()
        local = "fe80:0000:0000:0000:0000:77ff:fe00:0001"
        return [
            SimpleNamespace(gid_str=lambda gid=gid: gid, gid_index=index, gid_type=2, port_num=1)
            for index, gid in enumerate((local, self.device.gid))
        ]


class PD(Thing):
    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.context = context


class MR(Thing):
    pd: PD
    size: int

    def __init__(self, pd: PD, length: int, access: int, address: int) -> None:
        super().__init__(pd)
        with fabric.lock:
            used = sum(mr.size for mr in fabric.regions if mr.pd is pd)
            if used + length > pd.context.device.memlock:
                pd.children.remove(self)
                raise PyverbsRDMAError("Failed to register a MR", ENOMEM)
            self.pd, self.size, self.access, self.address = pd, length, access, address
            self.key = next(fabric.numbers) << 8 | 0x5A
            fabric.regions.append(self)

    @property
    def lkey(self) -> int:
        return int(self.use().key)

    @property
    def rkey(self) -> int:
        return int(self.use().key)

    def close(self) -> None:
        with fabric.lock:
            super().close()
            if self in fabric.regions:
                fabric.regions.remove(self)


class CompChannel(Thing):
    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.file = os.eventfd(0, os.EFD_SEMAPHORE)

    def get_cq_event(self, cq: "CQ") -> None:
        self.use()
        if cq.channel is not self:
            fabric.blame("two completion queues of one channel")
        os.eventfd_read(self.file)
        cq.events += 1

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self.file)


class NewCompChannel(CompChannel):
    """As since 59."""

    @property
    def fd(self) -> int:
        return int(self.use().file)


class CQ(Thing):
    def __init__(self, context: Context, size: int, about: None, **more: Any) -> None:
        self.size, self.channel = size, more["channel"]
        super().__init__(*[context, *([self.channel] if self.channel else [])])
        self.done: deque[SimpleNamespace] = deque()
        self.armed = False
        self.events = 0  # not acknowledged

    def add(self, wr_id: int, status: int) -> None:
        self.done.append(SimpleNamespace(wr_id=wr_id, status=status))
        if len(self.done) > self.size:
            fabric.blame("a completion had no room")
        if self.armed and self.channel:
            self.armed = False
            os.eventfd_write(self.channel.file, 1)

    def poll(self, most: int) -> tuple[int, list[SimpleNamespace]]:
        with fabric.lock:
            self.use()
            found = [self.done.popleft() for _ in range(min(most, len(self.done)))]
            return len(found), found

    def req_notify(self) -> None:
        with fabric.lock:
            self.use().armed = True

    def ack_events(self, count: int) -> None:
        self.use().events -= count


class QPAttr(SimpleNamespace):
    def __init__(self, port_num: int) -> None:
        super().__init__(port_num=port_num, path_mtu=MTU_1024, timeout=0, retry_cnt=0)
        self.__dict__.update(max_rd_atomic=0, max_dest_rd_atomic=0, qp_access_flags=0)


class QP(Thing):
    def __init__(self, pd: PD, what: SimpleNamespace, attr: QPAttr) -> None:
        super().__init__(pd, what.scq)
        self.pd, self.cq, self.device = pd, what.scq, pd.context.device
        self.depth, self.access = what.cap.max_send_wr, attr.qp_access_flags
        self.number = next(fabric.numbers)
        self.waiting = 0  # posted, and nothing is known of them
        self.failed = self.ready = False
        self.peer_gid, self.peer_number, self.first, self.peer_first, self.mtu = "", 0, 0, 0, 0
        fabric.queues[self.device.gid, self.number] = self

    @property
    def qp_num(self) -> int:
        return int(self.use().number)

    def to_rtr(self, attr: QPAttr) -> None:
        self.use()
        route = attr.ah_attr.gr
        if route.dgid.gid not in {device.gid for device in fabric.devices.values()}:
            raise PyverbsRDMAError("Failed to modify QP state to RTR", ETIMEDOUT)
        if route.sgid_index != 1 or attr.path_mtu > self.device.mtu:
            raise PyverbsRDMAError("Failed to modify QP state to RTR", EINVAL)
        if route.hop_limit < 2 or not 0 < attr.max_dest_rd_atomic <= 128:
            fabric.blame("a queue pair that nobody can read from")
        self.peer_gid, self.peer_number = route.dgid.gid, attr.dest_qp_num
        self.peer_first, self.mtu = attr.rq_psn, attr.path_mtu

    def to_rts(self, attr: QPAttr) -> None:
        self.use()
        if not attr.timeout or not 0 < attr.retry_cnt < 7 or not 0 < attr.max_rd_atomic <= 128:
            fabric.blame("a queue pair that never ends")
        self.first, self.ready = attr.sq_psn, True

    def post_send(self, wr: "SendWR") -> None:
        with fabric.lock:
            self.use()
            if not self.ready:
                raise PyverbsRDMAError("Failed to post send", EINVAL)
            one: SendWR | None = wr
            while one is not None:
                if self.waiting >= self.depth:
                    raise PyverbsRDMAError("Failed to post send", ENOMEM)
                self.waiting += 1
                fabric.posted.append((self, one.copied()))
                one = one.next_wr
            fabric.work.notify_all()

    def complete(self, wr: SimpleNamespace, status: int) -> None:
        self.waiting -= 1
        self.failed = self.failed or status != SUCCESS
        if status or wr.signaled:
            self.cq.add(wr.wr_id, status)

    def close(self) -> None:
        with fabric.lock:
            super().close()


class SGE:
    def __init__(self, addr: int, length: int, lkey: int) -> None:
        self.addr, self.length, self.lkey = addr, length, lkey
        self.freed = False

    def close(self) -> None:
        if self.freed:
            fabric.blame("memory of an SGE given back twice")
        self.freed = True


class SendWR:
    def __init__(
        self, wr_id: int, opcode: int, num_sge: int, sg: list[SGE], send_flags: int
    ) -> None:
        assert opcode == READ and num_sge == len(sg) == 1
        self.wr_id, self.signaled = wr_id, bool(send_flags & SIGNALED)
        self.sg_list = SGE(sg[0].addr, sg[0].length, sg[0].lkey)  # a copy, as pyverbs makes it
        self.next_wr: SendWR | None = None
        self.there = self.rkey = 0

    def set_wr_rdma(self, rkey: int, addr: int) -> None:
        self.rkey, self.there = rkey, addr

    def copied(self) -> SimpleNamespace:
        sge = self.sg_list
        if sge.freed:
            fabric.blame("a request used after it was closed")
        return SimpleNamespace(
            **{"wr_id": self.wr_id, "signaled": self.signaled, "lkey": sge.lkey},
            **{"here": sge.addr, "length": sge.length, "there": self.there, "rkey": self.rkey},
        )

    def close(self) -> None:
        self.sg_list.close()


class GID:
    def __init__(self, gid: str) -> None:
        if [len(group) for group in gid.split(":")] != [4] * 8:
            raise PyverbsError(f"Invalid GID value ({gid})")
        self.gid = gid


def _record(**values: Any) -> SimpleNamespace:
    return SimpleNamespace(**values)


_MODULES: dict[str, dict[str, Any]] = {
    "device": {"Context": Context},
    "pd": {"PD": PD},
    "mr": {"MR": MR},
    "cq": {"CQ": CQ, "CompChannel": CompChannel},
    "qp": {"QP": QP, "QPInitAttr": _record, "QPAttr": QPAttr, "QPCap": _record},
    "addr": {"AHAttr": _record, "GlobalRoute": _record, "GID": GID},
    "wr": {"SGE": SGE, "SendWR": SendWR},
    "pyverbs_error": {"PyverbsError": PyverbsError, "PyverbsRDMAError": PyverbsRDMAError},
}

_ENUMS = {
    "IBV_ACCESS_LOCAL_WRITE": LOCAL_WRITE,
    "IBV_ACCESS_REMOTE_READ": REMOTE_READ,
    "IBV_QPT_RC": RC,
    "IBV_WR_RDMA_READ": READ,
    "IBV_SEND_SIGNALED": SIGNALED,
}


def install(patch: pytest.MonkeyPatch, version: int) -> Fabric:
    """Have `import pyverbs` give this, as version 44 or 59 does, with no devices yet."""
    global fabric
    fabric = Fabric()
    new = version >= 59
    names = {**_MODULES, "libibverbs_enums" if new else "enums": _ENUMS}
    package = ModuleType("pyverbs")
    package.__path__ = []
    patch.setitem(sys.modules, "pyverbs", package)
    patch.setitem(sys.modules, "pyverbs.enums", None)
    for name, content in names.items():
        module = ModuleType(f"pyverbs.{name}")
        module.__dict__.update(content)
        patch.setitem(sys.modules, f"pyverbs.{name}", module)
    if new:
        sys.modules["pyverbs.cq"].CompChannel = NewCompChannel  # type: ignore[attr-defined]
    patch.setattr(verbs_lib, "EVENT_FILE", "anon_inode:[eventfd]")
    return fabric
