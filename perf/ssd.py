"""The SSD tier beside fio, and loads from memory while it writes: python -m perf.ssd [--dir DIR]

Writes: blocks that wait in memory are written; bytes per second from the first to the last that the
kernel books to the flusher, which syncs all the while.
Reads: the service is started anew with an empty pool of half the size; the engine looks all blocks
up, several lookups at a time, each answered when its blocks are in the pool; bytes per second of
the second time.  fio moves as many bytes in the same directories, in the same run.  Tier and fio
have their turns one after the other, and nobody begins before the blocks of removed files are
given back; the figures are medians.  CPU is that of the flusher, per GB.

Loads: while the log is being written, and at rest, in turns: the time of a load from memory.

Goals: 0.9 of the better fio; p99 of loads at most 1.2 x that at rest.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from rich.table import Table

from pegaflow.actors.index.lookup import AWAITED_SHARE
from pegaflow.client import Client, LookupDone, inspect
from pegaflow.core.errors import UserError
from pegaflow.replay import service
from pegaflow.service import sizes
from pegaflow.service.settings import Settings
from pegaflow.wire.layout import LayerLayout, Layout
from pegaflow.wire.status import Status
from pegaflow.wire.values import FLUSHER, INDEX
from perf import command, fio, machine
from perf.machine import percentile, timed, verdict

MIB, GIB = 1 << 20, 1 << 30
BLOCKS = (64 << 10, 256 << 10, 1 << 20, 4 << 20)
COLUMNS = "block dirs way tier psync io_uring /fio goal cpu_s/GB load".split()
WAYS = ("write", "read")
CHUNK = 16 * MIB  # of one save, and of one lookup
EXTENT = 32 * MIB
TIMEOUT_S = 30.0
FIO_GOAL, LOAD_GOAL = 0.9, 1.2
LOADS = 2000  # in each turn
POLL_S = 0.01  # looking is work, too


Speeds = dict[tuple[str, str], list[float]]  # bytes per second, by way and by whom
Cpus = dict[str, list[float]]  # seconds per GB, by way


@dataclass(frozen=True)
class Sample:
    """What the flusher has done so far, by the kernel's books."""

    seconds: float  # of the monotonic clock
    written: int  # bytes given to the disk
    cpu: float  # seconds


class Engine:
    """A client with one chunk of memory, which it saves under ever new keys."""

    def __init__(self, endpoint: str, block: int, name: str = "perf-ssd") -> None:
        self.block, self.count = block, CHUNK // block
        self.memory = machine.memory(2 * CHUNK)
        self.memory[:] = np.random.default_rng(1).integers(0, 256, 2 * CHUNK, np.uint8)
        layout = Layout(2 * self.count, (LayerLayout(0, 0, block, block),), "uint8")
        self._client = Client(name, b"ssd!" * 4, endpoint=endpoint)
        self._client.register(layout, [self.memory])
        if not self._client.connect(20.0):
            raise UserError(f"no session: {self._client.refusal}")

    def keys(self, chunk: int) -> list[bytes]:
        return [b"%016x%016x" % (chunk, block) for block in range(self.count)]

    def save(self, chunk: int) -> None:
        """One chunk, from the first half of the memory."""
        self.memory[:8] = np.frombuffer(chunk.to_bytes(8, "little"), np.uint8)
        done = self._client.save(self.keys(chunk), range(self.count), timeout=TIMEOUT_S)
        if done.saved != self.count:
            raise UserError(f"{done.saved} of {self.count} blocks saved: {done.status.words}")

    def look_up(self, chunks: Sequence[int], outstanding: int) -> int:
        """So many lookups at a time; the blocks that were found."""
        todo, open_, found = list(chunks), 0, 0
        while todo or open_:
            while todo and open_ < outstanding:
                self._client.start_lookup(self.keys(todo.pop(0)), timeout=TIMEOUT_S)
                open_ += 1
            for done in self._client.poll(TIMEOUT_S):
                assert isinstance(done, LookupDone)
                open_, found = open_ - 1, found + done.blocks
                if done.lease is not None:
                    self._client.release(done.lease)
        return found

    def load(self, chunk: int, blocks: int) -> float:
        """Seconds for the first few blocks of a chunk that is in memory."""
        found = self._client.lookup(self.keys(chunk)[:blocks], timeout=TIMEOUT_S)
        if found.lease is None or found.blocks != blocks:
            raise UserError(f"{found.blocks} of {blocks} blocks are in memory")
        lease, places = found.lease, range(self.count, self.count + blocks)
        seconds, done = timed(lambda: self._client.load(lease, places, timeout=TIMEOUT_S))
        if done.status is not Status.OK:
            raise UserError(f"not loaded: {done.status.words}")
        return seconds

    def close(self) -> None:
        self._client.close()


def flusher(endpoint: str) -> int:
    """Its pid."""
    report = inspect(endpoint, 5.0)
    pids = [row.pid for row in report.processes if row.address.name == FLUSHER] if report else []
    if not pids:
        raise UserError("there is no flusher")
    return pids[0]


def sample(pid: int) -> Sample:
    """One look at the flusher."""
    process = Path("/proc", str(pid))
    facts = dict(line.split(": ") for line in (process / "io").read_text().splitlines())
    ticks = (process / "stat").read_text().rsplit(") ", 1)[1].split()[11:13]
    cpu = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    return Sample(time.monotonic(), int(facts["write_bytes"]), cpu)


def progress(pid: int, before: Sample, total: int) -> list[Sample]:
    """Every change until `total` bytes are written."""
    samples = [before]
    until = time.monotonic() + 120
    while samples[-1].written - before.written < total:
        if time.monotonic() > until:
            raise UserError(f"{samples[-1].written - before.written} of {total} bytes are written")
        now = sample(pid)
        if now.written != samples[-1].written:
            samples.append(now)
        time.sleep(POLL_S)
    return samples


@contextmanager
def folders(where: Path, count: int) -> Iterator[list[Path]]:
    """So many new directories."""
    base = Path(tempfile.mkdtemp(prefix="pegaflow-ssd-", dir=where))
    try:
        made = [base / str(n) for n in range(count)]
        for path in made:
            path.mkdir()
        yield made
    finally:
        shutil.rmtree(base, ignore_errors=True)


def flags(paths: Sequence[Path], *more: str) -> tuple[str, ...]:
    """Of a service with an SSD tier."""
    return (*(part for path in paths for part in ("--ssd-cache-path", str(path))), *more)


@contextmanager
def engine(endpoint: str, block: int) -> Iterator[Engine]:
    made = Engine(endpoint, block)
    try:
        yield made
    finally:
        made.close()


def write_rate(block: int, paths: Sequence[Path], total: int) -> tuple[float, float]:
    """Bytes per second and CPU seconds per GB while all of it is written, and nothing else is done.

    At first the directories are files, so that the blocks wait in memory; then they are not."""
    pool = -(-(total + total // 4) // EXTENT) * EXTENT
    extra = flags(blocked(paths))
    with service.running(pool, EXTENT, extra) as endpoint, engine(endpoint, block) as one:
        for chunk in range(total // CHUNK):
            one.save(chunk)
        os.sync()
        pid = flusher(endpoint)
        before = sample(pid)
        unblock(paths)
        samples = progress(pid, before, total)
        if len(samples) < 3:
            raise UserError("all of it was written between two looks; give more --bytes")
        first, last = samples[1], samples[-1]
        moved = last.written - first.written
        return moved / (last.seconds - first.seconds), (last.cpu - first.cpu) / (moved / 1e9)


def read_rate(block: int, paths: Sequence[Path], total: int) -> tuple[float, float]:
    """Bytes per second and CPU seconds per GB while all of it is looked up, twice as much as the
    pool has room for, and once before, so that nothing touches the pool for the first time."""
    chunks, pool = total // CHUNK, max(total // 2, 2 * EXTENT)
    awaited = min(Settings.max_prefetch_blocks * block, int(pool * AWAITED_SHARE))
    outstanding = max(1, min(8, awaited // CHUNK))
    with service.running(pool, EXTENT, flags(paths)) as endpoint, engine(endpoint, block) as one:
        known(endpoint, total // block)
        one.look_up(range(chunks), outstanding)
        pid = flusher(endpoint)
        before = sample(pid)
        seconds, found = timed(lambda: one.look_up(range(chunks), outstanding))
        after = sample(pid)
        if found != total // block:
            raise UserError(f"{found} of {total // block} blocks came back")
    return total / seconds, (after.cpu - before.cpu) / (total / 1e9)


def known(endpoint: str, blocks: int) -> None:
    """Wait until the index knows what is in the log."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if counted(endpoint, INDEX, "ssd_stored_blocks") == blocks:
            return
        time.sleep(0.05)
    there = counted(endpoint, INDEX, "ssd_stored_blocks")
    raise UserError(f"the index knows of {there} blocks in the log, not of {blocks}")


def counted(endpoint: str, name: str, counter: str) -> int:
    """A counter or gauge of the processes of this name, as of their last beats."""
    report = inspect(endpoint, 5.0)
    rows = [row for row in report.processes if row.address.name == name] if report else []
    return sum(c.value for row in rows for c in row.counters if c.name == counter)


def throughput(table: Table, where: Path, blocks: Sequence[int], total: int, turns: int) -> None:
    """A row for each size, number of directories, and way."""
    for block in blocks:
        for count in (1, 2):
            speeds: dict[tuple[str, str], list[float]] = defaultdict(list)
            cpus: dict[str, list[float]] = defaultdict(list)
            sides = [of_tier, of_fio]
            for _ in range(turns):
                for side in sides:
                    with folders(where, count) as paths:
                        side(speeds, cpus, block, paths, total)
                sides.reverse()
            for way in WAYS:
                figures = [median(speeds[way, by]) for by in ("tier", *fio.ENGINES)]
                best = max(figures[1:])
                ratio = figures[0] / best if best else 0.0
                table.add_row(
                    sizes.show(block),
                    str(count),
                    way,
                    *(f"{speed / 1e9:.2f}" if speed else "-" for speed in figures),
                    *((f"{ratio:.2f}", verdict(ratio, FIO_GOAL, least=True)) if best else "--"),
                    f"{median(cpus[way]):.2f}",
                    machine.load(),
                )


def of_tier(speeds: Speeds, cpus: Cpus, block: int, paths: Sequence[Path], total: int) -> None:
    """One turn of the tier."""
    for way, rate in zip(WAYS, (write_rate, read_rate), strict=True):
        speed, cpu = rate(block, paths, total)
        speeds[way, "tier"].append(speed)
        cpus[way].append(cpu)


def of_fio(speeds: Speeds, cpus: Cpus, block: int, paths: Sequence[Path], total: int) -> None:
    """One turn of fio; 0 where it is not to be had."""
    for way in WAYS:
        for by in fio.ENGINES:
            os.sync()
            speeds[way, by].append(fio.measure(by, way, paths, block, total) or 0.0)
            fio.clean(paths)


def loads(where: Path, block: int, turns: int, count: int) -> tuple[list[float], list[float]]:
    """Seconds of loads from memory while the log is written, and at rest."""
    total, blocks = GIB, MIB // block
    busy: list[float] = []
    rest: list[float] = []
    for _ in range(turns):
        with (
            folders(where, 1) as paths,
            service.running(2 * total, EXTENT, flags(blocked(paths))) as endpoint,
            engine(endpoint, block) as one,
        ):
            for chunk in range(total // CHUNK):
                one.save(chunk)
            pid = flusher(endpoint)
            before = sample(pid)
            unblock(paths)
            while sample(pid).written == before.written:
                one.load(0, blocks)
            own: list[float] = []
            while len(own) < count and sample(pid).written - before.written < total:
                own += [one.load(0, blocks) for _ in range(50)]
            progress(pid, before, total)
            busy += own
            rest += [one.load(0, blocks) for _ in own]
    return busy, rest


def blocked(paths: Sequence[Path]) -> Sequence[Path]:
    """Files instead of directories, so that blocks wait in memory until `unblock`."""
    for path in paths:
        path.rmdir()
        path.touch()
    return paths


def unblock(paths: Sequence[Path]) -> None:
    """The service makes directories, as soon as it looks again."""
    for path in paths:
        path.unlink()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="a folder on the disk")
    parser.add_argument("--bytes", type=int, default=2 * GIB, help="written and read in each turn")
    parser.add_argument("--turns", type=int, default=3, help="of everything")
    parser.add_argument("--quick", action="store_true", help="one size, few bytes")
    given = parser.parse_args()
    total, turns = (4 * CHUNK, 1) if given.quick else (given.bytes, given.turns)
    blocks = BLOCKS[1:2] if given.quick else BLOCKS
    table = Table(*COLUMNS, box=None, caption="GB/s; fio with O_DIRECT, 8 jobs or depth 32")
    fio.need_disk(given.dir)
    throughput(table, given.dir, blocks, total, turns)
    machine.show(table)
    if given.quick:
        return
    p99 = Table("loads of 1 MiB", "p50 us", "p99 us", "goal", box=None)
    busy, rest = loads(given.dir, 256 << 10, turns, LOADS)
    for name, some in (("at rest", rest), ("while the log is written", busy)):
        ratio = percentile(some, 99) / percentile(rest, 99)
        goal = "" if some is rest else f"p99 {ratio:.2f} x {verdict(ratio, LOAD_GOAL)}"
        p99.add_row(
            f"{name} ({len(some)})",
            f"{median(some) * 1e6:.0f}",
            f"{percentile(some, 99) * 1e6:.0f}",
            goal,
        )
    machine.show(p99)


if __name__ == "__main__":
    command.run("perf.ssd", main)
