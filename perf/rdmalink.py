"""READs of blocks by RDMA, beside ib_read_bw: python -m perf.rdmalink [OWNER READER [BLOCKS]]

OWNER and READER are RDMA devices of this machine that reach each other, or one twice.  The owner
is a process of its own, for both; rounds take turns, and medians are compared.  `sums` are the
checksums, which ib_read_bw does not make.  Without devices there are the costs of a piece in
Python alone: all that is done for it but to post, to wait and to sum, which is the device's, the
kernel's and xxhash's.
"""

from __future__ import annotations

import mmap
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from statistics import median

from pegaflow.core.errors import UserError
from pegaflow.core.segments.codec import page_sum
from pegaflow.device.link import Outcome, Piece
from pegaflow.device.link.verbs import RegisteredPool, VerbsOwner, VerbsReader, open_nics
from pegaflow.device.link.verbs_flow import CHAIN_RUNS, QUEUE_RUNS, Fetch, Flow, Lane
from pegaflow.device.link.verbs_lib import Library
from pegaflow.device.link.verbs_link import VerbsLink
from pegaflow.device.link.verbs_nic import Requests
from pegaflow.device.link.verbs_plan import CHUNK_BYTES, KNOWN, Keys, Run, runs
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.status import Status

MIB = 1 << 20
BLOCK_BYTES = MIB
BLOCKS = 128  # of a round
ROUNDS = 5
TOKEN = bytes(32)
PORT = 18515  # of ib_read_bw's own conversation
READY_S = 60.0


def main() -> None:
    if sys.argv[1:2] == ["--owner"]:
        serve(sys.argv[2], int(sys.argv[3]))
        return
    try:
        costs(Library())
        if len(sys.argv) > 2:
            rates(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else BLOCKS)
    except UserError as err:
        raise SystemExit(f"perf.rdmalink: {err}") from None


def costs(lib: Library) -> None:
    """What Python does for a piece, in microseconds of one core."""
    length = 1 << 36
    keys = Keys(0, length, chunk=CHUNK_BYTES, words=[KNOWN | 7] * (length // CHUNK_BYTES))
    pieces = [Piece(n * BLOCK_BYTES, n * BLOCK_BYTES, BLOCK_BYTES) for n in range(CHAIN_RUNS)]
    planned = [run for piece in pieces for run in plan(piece, keys)]
    requests = Requests(lib, QUEUE_RUNS)

    def whole() -> None:
        flow, lane = Flow(), Lane()
        nodes = [(-1, -1)] * len(pieces)
        flow.start(Fetch(pieces, nodes, lambda outcomes: None, 1 << 62))
        chain = flow.take(lane, lambda piece: plan(piece, keys))
        assert chain is not None
        requests.chain(chain.runs, chain.serial)
        for fetch, index in lane.landed(chain.serial).items:
            fetch.settle(index, Outcome(Status.OK))
        for fetch in flow.ended():
            fetch.end()

    def built() -> None:
        Requests(lib, CHAIN_RUNS).close()

    print("| for a piece | us |\n|---|---|")
    for name, step in (
        ("its request set anew", lambda: requests.chain(planned, 1)),
        ("its READ planned", lambda: [plan(piece, keys) for piece in pieces]),
        ("all of it, but to post, to wait and to sum", whole),
        ("a request built, which is done once", built),
    ):
        print(f"| {name} | {each(step) / len(pieces) * 1e6:.2f} |", flush=True)
    requests.close()


def plan(piece: Piece, keys: Keys) -> list[Run]:
    return runs((piece.local, piece.remote), piece.bytes, (keys, keys), 1 << 30)


def each(step: Callable[[], object]) -> float:
    """Seconds of one call: the median of many."""
    found = []
    for _ in range(300):
        since = time.perf_counter()
        step()
        found.append(time.perf_counter() - since)
    return median(found)


def rates(owner: str, reader: str, count: int) -> None:
    """Blocks between two devices, by ib_read_bw and by a link, in turn."""
    bare, ours, cpu = [], [], []
    with ExitStack() as stack:
        served = subprocess.Popen(
            [sys.executable, "-m", "perf.rdmalink", "--owner", owner, str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(served.kill)
        pool = registered(reader, count)
        stack.callback(pool.close)
        ends = VerbsReader(pool)
        stack.callback(ends.close)
        assert served.stdin and served.stdout
        print(ends.ask().hex(), file=served.stdin, flush=True)
        link = ends.connect(bytes.fromhex(served.stdout.readline()), TOKEN)
        for _ in range(ROUNDS):
            bare.append(ib_read_bw(owner, reader, count))
            wall, used = fetch(link, count)
            ours.append(count * BLOCK_BYTES / MIB / wall)
            cpu.append(used / (count * BLOCK_BYTES) * 1e9)
        since = time.thread_time()
        for n in range(count):
            page_sum(pool.view[n * BLOCK_BYTES : (n + 1) * BLOCK_BYTES])
        sums = (time.thread_time() - since) / (count * BLOCK_BYTES) * 1e9
    ratio = median(ours) / median(bare)
    print("\n| blocks of 1 MiB | MiB/s | of ib_read_bw | reader's CPU s per GB |")
    print("|---|---|---|---|")
    print(f"| ib_read_bw | {median(bare):.0f} | 1.00 | |")
    print(f"| link | {median(ours):.0f} | {ratio:.2f} | {median(cpu):.2f}, sums {sums:.2f} |")


def registered(name: str, count: int) -> RegisteredPool:
    """A pool of memory that is there, on one device."""
    pool = RegisteredPool(memoryview(mmap.mmap(-1, count * BLOCK_BYTES)), open_nics([name]))
    for _ in pool.register(count * BLOCK_BYTES):
        pass
    return pool


def serve(name: str, count: int) -> None:
    """The owner: answers one ask, and is read from until it is killed."""
    owner = VerbsOwner(registered(name, count))
    ask = bytes.fromhex(sys.stdin.readline())
    print(owner.admit(Incarnation(1), TOKEN, ask).hex(), flush=True)
    sys.stdin.read()


def fetch(link: VerbsLink, count: int) -> tuple[float, float]:
    """Seconds for all blocks, of the clock and of this process's cores."""
    over = threading.Event()
    found: list[Outcome] = []

    def done(outcomes: Sequence[Outcome]) -> None:
        found.extend(outcomes)
        over.set()

    pieces = [Piece(n * BLOCK_BYTES, n * BLOCK_BYTES, BLOCK_BYTES) for n in range(count)]
    since, used = time.perf_counter(), time.process_time()
    link.read(1, pieces, done, time.monotonic_ns() + int(READY_S * 1e9))
    over.wait()
    wall, cpu = time.perf_counter() - since, time.process_time() - used
    if {outcome.status for outcome in found} != {Status.OK}:
        raise UserError(f"a read failed: {link.why}")
    return wall, cpu


def ib_read_bw(owner: str, reader: str, count: int) -> float:
    """MiB/s of perftest's program, as many READs of the same length."""
    common = f"ib_read_bw -F -s {BLOCK_BYTES} -n {count} -p {PORT} -x"
    address, index = place(owner)
    server = subprocess.Popen(
        [*common.split(), str(index), "-d", owner],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        client = [*common.split(), str(place(reader)[1]), "-d", reader, address]
        end = time.monotonic() + READY_S
        while True:  # the server says nothing when it listens
            ran = subprocess.run(client, capture_output=True, text=True)
            if row := re.search(rf"^\s*{BLOCK_BYTES}\s+\d+\s+\S+\s+(\S+)", ran.stdout, re.M):
                return float(row[1])
            if server.poll() is not None or time.monotonic() > end:
                raise UserError(
                    f"ib_read_bw: {ran.stdout[-200:]} {ran.stderr[-200:]}".replace("\n", " ")
                )
    finally:
        server.kill()
        server.wait()


def place(name: str) -> tuple[str, int]:
    """The IPv4 address of a device, and its index."""
    (nic,) = open_nics([name])
    gid, index, _ = nic.address()
    nic.close()
    return ".".join(map(str, gid[12:])), index


if __name__ == "__main__":
    main()
