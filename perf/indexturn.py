"""One turn of perf.index: figures of one index as JSON, with whatever `pegaflow` is imported.

It needs nothing else of this repository, so that another commit's package can be measured by it.
The index is a real one in its host, in this process; its messages are packed before the clock runs,
and unpacked while it does.
"""

from __future__ import annotations

import json
import mmap
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

from pegaflow.actors.index.actor import Index
from pegaflow.actors.runtime.host import Host
from pegaflow.actors.runtime.process import collect_young_only
from pegaflow.core.pool.geometry import MIN_PAGE
from pegaflow.core.pool.hazards import HazardReader, Hazards, hazard_bytes
from pegaflow.core.pool.ledger import Header, Ledger
from pegaflow.core.pool.table import Table, file_bytes
from pegaflow.device import membarrier
from pegaflow.wire.allocator import Freed, Pressure
from pegaflow.wire.control import Hello, Members, Neighbour, Welcome
from pegaflow.wire.envelope import Envelope, pack, unpack
from pegaflow.wire.index import (
    Claim,
    Claimed,
    EndClaim,
    Find,
    HazardFile,
    Held,
    LeasesHeld,
    Release,
    Seal,
)
from pegaflow.wire.message import Message
from pegaflow.wire.values import ALLOCATOR, INDEX, SESSION, SUPERVISOR, Address

CHAIN = 1024  # blocks of one save
PIECE = 1024  # blocks of one Seal at most: what a session copies at a time
FOUND = 128  # keys of one lookup
EXTENT = 32 << 20
PER_EXTENT = EXTENT // MIN_PAGE

# Plain values: another commit may know no types for what they name.
_LIVES: Any = (1, 2, 3, 4)
_NAMESPACE: Any = bytes(range(16))
_ROOT: Any = bytes(32)
_HELLO: Any = Hello(100, 200, "ipc://somewhere")
_NONE: Any = 0

BOSS, ALLOC, ME, ENGINE = (
    Address(name, life)
    for name, life in zip((SUPERVISOR, ALLOCATOR, INDEX, SESSION), _LIVES, strict=True)
)


class Memory:
    """The index's: shared memory of this process, and the kernel's barrier."""

    def __init__(self, records: int) -> None:
        extents = records // PER_EXTENT
        self.pool_bytes = extents * EXTENT
        header = Header(
            bytes(16),
            b"boot",
            self.pool_bytes,
            EXTENT,
            records_per_extent=PER_EXTENT,
            incarnation=_LIVES[0],
        )
        self.ledger = Ledger.format(mmap.mmap(-1, file_bytes(records)), header)
        self._hazards = bytearray(hazard_bytes(4096))
        self.hazards = Hazards(self._hazards)

    def open(self, welcome: Welcome) -> tuple[Ledger, Table]:
        ledger = self.ledger
        return ledger, Table(ledger._bytes, ledger.records, lambda at, length: "")

    def open_hazards(self, msg: HazardFile) -> HazardReader | str:
        return HazardReader(self._hazards)

    def barrier(self) -> str:
        return membarrier.barrier()


class Driver:
    """Speaks to one index, and keeps what each step took."""

    def __init__(self, blocks: int) -> None:
        records = -(-blocks // PER_EXTENT) * PER_EXTENT
        self.memory = Memory(records)
        self.host = Host(Index(ME, BOSS, _HELLO, self.memory))
        self.cpu_s = 0.0
        self.longest_s = {"cpu": 0.0, "wall": 0.0}
        self.host.start(self.now)
        welcome = Welcome("pool", "ledger", self.memory.pool_bytes, EXTENT, run_dir="run")
        self.tell(BOSS, welcome)
        self.tell(BOSS, Members((ENGINE,), ()))
        self.tell(BOSS, Neighbour(ALLOC, "ipc://a", 1))
        self.rest()
        self.tell(ENGINE, HazardFile("hazards", (1, 1)), 1)
        self.tell(ENGINE, LeasesHeld(_NONE, (), _NONE, ()))
        self.rest()

    @property
    def now(self) -> int:
        return time.monotonic_ns()

    def tell(self, sender: Address, message: Message, question: int = 0) -> list[Envelope]:
        """One message; what is said after it."""
        due = self.now + 10**10 if question else 0
        frames = pack(Envelope(sender, ME, message, question, deadline=due))
        return self._step(lambda: self.host.deliver(unpack(frames), self.now, frames))

    def ask(self, sender: Address, message: Message) -> Any:
        (answer,) = (e.message for e in self.tell(sender, message, 1) if e.answer)
        return answer

    def rest(self) -> None:
        """Everything that is due."""
        while (at := self.host.wake_at()) is not None and at <= self.now:
            self._step(lambda: self.host.wake(self.now))

    def _step(self, work: Any) -> list[Envelope]:
        began, cpu = time.perf_counter(), time.thread_time()
        step = work()
        frames = [pack(envelope) for envelope in step.envelopes]
        took, used = time.perf_counter() - began, time.thread_time() - cpu
        self.cpu_s += used
        self.longest_s["cpu"] = max(self.longest_s["cpu"], used)
        self.longest_s["wall"] = max(self.longest_s["wall"], took)
        return [unpack(frame) for frame in frames]

    def forget(self) -> None:
        self.cpu_s = 0.0
        self.longest_s = dict.fromkeys(self.longest_s, 0.0)


def numbers(first: int, end: int) -> Any:
    return tuple(range(first, end))


def keys_of(chain: int) -> Any:
    """What engines name blocks by: digests."""
    return tuple(sha256(b"%d %d" % (chain, block)).digest() for block in range(CHAIN))


def save(driver: Driver, chain: int, pages: Any) -> None:
    """Claim a chain and seal it piece by piece."""
    keys = keys_of(chain)[: len(pages)]
    claimed = driver.ask(ENGINE, Claim(_NAMESPACE, keys))
    assert isinstance(claimed, Claimed) and len(claimed.positions) == len(keys)
    first: Any = (chain + 1) * CHAIN
    for at in range(0, len(keys), PIECE):
        part = slice(at, min(at + PIECE, len(keys)))
        parents = ((keys[at - 1] if at else _ROOT), *keys[at : part.stop - 1])
        seal = Seal(
            claimed.number,
            _NAMESPACE,
            MIN_PAGE,
            MIN_PAGE,
            shards=1,
            keys=keys[part],
            parents=parents,
            pages=tuple(pages[part]),
            stamps=numbers(first + at, first + part.stop),
        )
        sealed = driver.ask(ENGINE, seal)
        assert len(sealed.positions) == len(keys[part])
    driver.tell(ENGINE, EndClaim(claimed.number))
    driver.rest()


def anonymous_bytes() -> int:
    """Private memory of this process: neither a file's nor shared."""
    with open("/proc/self/smaps_rollup") as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon")) << 10


def evict(driver: Driver) -> Any:
    """Pages for one chain, evicted."""
    pages: list[int] = []
    while len(pages) < CHAIN:
        freed = driver.ask(ALLOC, Pressure(MIN_PAGE, CHAIN - len(pages), False))
        assert isinstance(freed, Freed) and freed.pages
        pages += freed.pages
    return pages


def lookups(driver: Driver, chains: Iterator[int]) -> None:
    """64 under way at once."""
    held = [driver.ask(ENGINE, Find(_NAMESPACE, keys_of(next(chains))[:FOUND])) for _ in range(64)]
    for lease in held:
        assert isinstance(lease, Held)
        driver.tell(ENGINE, Release(lease.number))


def turn(blocks: int, saves: int) -> dict[str, float]:
    """Fill an index; save into it with eviction; then look up beside that."""
    wrong = membarrier.register()
    assert not wrong, wrong
    driver = Driver(blocks)
    collect_young_only()
    before = anonymous_bytes()
    chains = blocks // CHAIN
    for chain in range(chains):
        save(driver, chain, range(chain * CHAIN, (chain + 1) * CHAIN))
    driver.host.inputs.clear()  # the black box: of one size, however many blocks there are
    filled = anonymous_bytes() - before
    found = {
        "bytes": filled / (chains * CHAIN),
        "filling_ms": driver.longest_s["cpu"] * 1e3,
    }
    driver.forget()
    for chain in range(chains, chains + saves):
        save(driver, chain, evict(driver))
    found["us"] = driver.cpu_s / (saves * CHAIN) * 1e6
    found["saving_ms"] = driver.longest_s["cpu"] * 1e3
    driver.forget()
    recent = iter(range(chains + saves - 64 * (saves // 8) - 1, chains + saves))
    for chain in range(chains + saves, chains + saves + saves // 8):
        lookups(driver, recent)
        save(driver, chain, evict(driver))
    found["mixed_ms"] = driver.longest_s["cpu"] * 1e3
    found["mixed_wall_ms"] = driver.longest_s["wall"] * 1e3
    found["bytes_after"] = (anonymous_bytes() - before) / (chains * CHAIN)
    return found


if __name__ == "__main__":
    json.dump(turn(int(sys.argv[1]), int(sys.argv[2])), sys.stdout)
