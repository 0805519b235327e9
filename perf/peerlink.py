"""Pulls from another host's pool beside bare loops over the same path: python -m perf.peerlink

Two processes with a pool each; scattered pieces of one are pulled into scattered pages of the
other. *link* is the TCP transport, once with the checksums of the owner's ledger, which the reader
compares, and once with checksums that the owner makes as it sends.  Beside it, in turns, the best
bare loops that are known: *one* stream (sendmsg, recvmsg_into of 4 MiB), and *four* with
MSG_WAITALL, a thread each; they compare nothing.  `iperf3 -l 1M` is asked too, where it is
installed.  Rates are medians; CPU seconds are of both processes together.

`--veth` (root) does it between two network namespaces that a veth pair connects, not over loopback.

Goals: 0.95 x the best of the others, 0.4 CPU seconds per GB.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from statistics import median

from rich.table import Table

from pegaflow.core.errors import UserError
from pegaflow.core.segments.codec import page_sum
from pegaflow.device.link import STREAMS, Link, Outcome, Piece
from pegaflow.device.link.tcpreader import TcpReader
from pegaflow.wire.status import Status
from perf import command, machine
from perf.machine import ENVIRONMENT, verdict
from perf.peerlinkside import COUNT, PLACE, TOKEN, calls, full, left

MIB, GB = 1 << 20, 1e9
LOOPBACK = "127.0.0.1"
SPACES = ("pegaperf-a", "pegaperf-b")
ADDRESSES = ("10.231.77.1", "10.231.77.2")
TURN_MIB, QUICK_MIB = 256, 16  # of small pulls, so many that one turn moves this
TOTALS = (1, 4, 16, 64, 256)
PATIENCE_NS = 60 * 10**9
RATE_GOAL, CPU_GOAL = 0.95, 0.4
NAMES = ("iperf3", "one", "four", "link", "own-sums")
COLUMNS = ("MiB", *NAMES, "link/best", *NAMES, "goal", "machine")

Pull = Callable[[Sequence[Piece]], None]


def cpu_seconds(pid: int) -> float:
    """That a process has used, all threads that it ever had."""
    return time.clock_gettime(~pid << 3 | 2)  # the kernel's number for that process's clock


class Bare:
    """So many streams of a bare loop, a thread each."""

    def __init__(self, place: tuple[str, int], streams: int, pool: memoryview, flags: int) -> None:
        self._pool = pool
        self._flags = flags
        self._asked: list[queue.SimpleQueue[Sequence[Piece]]] = []
        self._done: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(streams):
            sock = socket.create_connection(place)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._asked.append(queue.SimpleQueue())
            run = (sock, self._asked[-1])
            threading.Thread(target=self._run, args=run, daemon=True).start()

    def pull(self, pieces: Sequence[Piece]) -> None:
        """Each stream an equal share, one after the other."""
        share = -(-len(pieces) // len(self._asked))
        for at, asked in enumerate(self._asked):
            asked.put(pieces[at * share : (at + 1) * share])
        for _ in self._asked:
            self._done.get()

    def _run(self, sock: socket.socket, asked: queue.SimpleQueue[Sequence[Piece]]) -> None:
        while True:
            pieces = asked.get()
            if pieces:
                there = b"".join(PLACE.pack(piece.remote, piece.bytes) for piece in pieces)
                sock.sendall(COUNT.pack(len(pieces)) + there)
                for parts in calls(self._pool, [(piece.local, piece.bytes) for piece in pieces]):
                    while parts:
                        parts = left(parts, sock.recvmsg_into(parts, 0, self._flags)[0])
            self._done.put(None)


def over(link: Link) -> Pull:
    """By the transport."""

    def pull(pieces: Sequence[Piece]) -> None:
        ends: queue.SimpleQueue[Sequence[Outcome]] = queue.SimpleQueue()
        link.read(1, pieces, ends.put, time.monotonic_ns() + PATIENCE_NS)
        wrong = {outcome.status for outcome in ends.get()} - {Status.OK}
        if wrong:
            raise UserError(f"a pull failed: {wrong}")

    return pull


def scattered(total: int, size: int, told: memoryview | None) -> list[Piece]:
    """Pieces of one pull; with the checksums that a ledger would have, or without."""
    remote, local = ([at * size for at in range(total // size)] for _ in range(2))
    random.Random(2).shuffle(remote)
    random.Random(3).shuffle(local)
    return [
        Piece(there, here, size, None if told is None else page_sum(told[there : there + size]))
        for there, here in zip(remote, local, strict=True)
    ]


def turn(
    pull: Pull, pieces: Sequence[Piece], count: int, pids: Sequence[int]
) -> tuple[float, float]:
    """Bytes per second, and CPU seconds per GB, of so many pulls."""
    before = sum(map(cpu_seconds, pids))
    begun = time.perf_counter()
    for _ in range(count):
        pull(pieces)
    seconds = time.perf_counter() - begun
    moved = count * sum(piece.bytes for piece in pieces)
    return moved / seconds, (sum(map(cpu_seconds, pids)) - before) / moved * GB


def iperf3(host: str) -> tuple[float, float]:
    """The same of `iperf3 -l 1M`, one stream, of one second."""
    given = ("iperf3", "-c", host, "-R", "-l", "1M", "-t", "1", "-J")
    end = json.loads(subprocess.run(given, capture_output=True, check=True).stdout)["end"]
    rate = end["sum_received"]["bits_per_second"] / 8
    used = end["cpu_utilization_percent"]
    return rate, (used["host_total"] + used["remote_total"]) / 100 / rate * GB


def take_turns(
    ways: Mapping[str, Callable[[], tuple[float, float]]], turns: int
) -> tuple[dict[str, float], dict[str, float]]:
    """The median rate and the median cost of each way; the first turn is not counted."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(turns + 1):
        for name, way in ways.items():
            found[name].append(way())
    rate, cost = (
        {name: median(row[at] for row in rows[1:]) for name, rows in found.items()} for at in (0, 1)
    )
    return rate, cost


def measure(given: argparse.Namespace, host: str, side: subprocess.Popen[str]) -> None:
    """Print the table."""
    assert side.stdout is not None
    offer, port = side.stdout.readline().split()
    size, largest = given.piece * 1024, max(given.mib) * MIB
    pool, content = machine.memory(largest).data, full(largest)
    reader = TcpReader(pool)
    link = over(reader.connect(bytes.fromhex(offer), TOKEN))
    place = (host, int(port))
    bare = Bare(place, 1, pool, 0).pull, Bare(place, STREAMS, pool, socket.MSG_WAITALL).pull
    table = Table(*COLUMNS, box=None, caption="GB/s, then CPU seconds per GB; medians")
    for mib in given.mib:
        total = mib * MIB
        count = max(1, (QUICK_MIB if given.quick else TURN_MIB) // mib)
        pids = (os.getpid(), side.pid)
        told, untold = scattered(total, size, content), scattered(total, size, None)
        ways: dict[str, Callable[[], tuple[float, float]]] = {"iperf3": partial(iperf3, host)}
        for name, pull in zip(NAMES[1:3], bare, strict=True):
            ways[name] = partial(turn, pull, untold, count, pids)
        if not shutil.which("iperf3"):
            del ways["iperf3"]
        ways["link"] = partial(turn, link, told, count, pids)
        ways["own-sums"] = partial(turn, link, untold, count, pids)
        rate, cost = take_turns(ways, given.turns)
        ratio = rate["link"] / max(rate[name] for name in NAMES[:3] if name in rate)
        table.add_row(
            str(mib),
            *(f"{rate[name] / GB:.2f}" if name in rate else "" for name in NAMES),
            f"{ratio:.2f} {verdict(ratio, RATE_GOAL, least=True)}",
            *(f"{cost[name]:.2f}" if name in cost else "" for name in NAMES),
            verdict(cost["link"], CPU_GOAL),
            machine.load(),
        )
    reader.close()
    machine.show(table, f"pieces of {given.piece} KiB, {given.turns} turns, over {host}")


@contextmanager
def child(*words: str) -> Iterator[subprocess.Popen[str]]:
    """A process that ends with us."""
    process = subprocess.Popen(
        words, env=ENVIRONMENT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def ip(*words: str) -> None:
    """One command of iproute2."""
    done = subprocess.run(("ip", *words), capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"ip {' '.join(words)}: {done.stderr.strip()}; --veth needs root")


@contextmanager
def namespaces() -> Iterator[None]:
    """Two, that a veth pair connects."""
    try:
        for space in SPACES:
            ip("netns", "add", space)
        ends = [f"peth{at}" for at in range(2)]
        ip(*("link", "add", ends[0], "type", "veth", "peer", "name", ends[1]))
        for end, space, address in zip(ends, SPACES, ADDRESSES, strict=True):
            ip("link", "set", end, "netns", space)
            ip("-n", space, "address", "add", f"{address}/24", "dev", end)
            ip("-n", space, "link", "set", end, "up")
        yield
    finally:
        for space in SPACES:
            with suppress(UserError):
                ip("netns", "delete", space)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, nargs="+", default=TOTALS, help="of a pull")
    parser.add_argument("--piece", type=int, default=256, help="KiB of a page")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--veth", action="store_true", help="between two network namespaces")
    parser.add_argument("--quick", action="store_true", help="one small pull, two turns")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.quick:
        given.mib, given.turns = [4], 2
    with ExitStack() as stack:
        prefix: tuple[str, ...] = ()
        if given.veth:
            stack.enter_context(namespaces())
            again = ("ip", "netns", "exec", SPACES[1], sys.executable, "-m", "perf.peerlink")
            rest = [word for word in sys.argv[1:] if word != "--veth"]
            subprocess.run((*again, *rest, "--inside", SPACES[0]), env=ENVIRONMENT)
            return
        host = ADDRESSES[0] if given.inside else LOOPBACK
        if given.inside:
            prefix = ("ip", "netns", "exec", given.inside)
        if shutil.which("iperf3"):
            stack.enter_context(child(*prefix, "iperf3", "-s"))
        serve = (sys.executable, "-m", "perf.peerlinkside", host, str(max(given.mib) * MIB))
        measure(given, host, stack.enter_context(child(*prefix, *serve)))


if __name__ == "__main__":
    command.run("perf.peerlink", main)
