"""Lookup and lease, engine to index and back, beside a bare echo: python -m perf.latency

A real client asks a real session, which asks a real index of a million blocks, and gets a lease of
all blocks it asked for.  A bare ZeroMQ ipc echo and a chain of two hops, with questions of the same
bytes, take turns with it.  With several outstanding, a new lookup starts whenever one ends, and the
time of each is its own; with one, the index is at rest again before the next.

Goals: the median of 128 keys under 3 x the echo and its p99 under 2 x that median, at rest; and a
p99 no more than 2 x that of rest while another process burns a core.

With `--against` a checkout of another version, both take turns instead, in real pools and at rest:
the table of perf/peers/lookups.py without peers.

The service has the bounds that every service has.  So the index must be so large that the leases of
all lookups under way are no more than one engine may hold: fewer blocks are refused beforehand.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.table import Table

from pegaflow.client import Client, LookupDone
from pegaflow.core.errors import UserError
from pegaflow.core.pool.geometry import MIN_PAGE
from pegaflow.service.rundir import front_desk
from pegaflow.service.settings import Settings
from pegaflow.wire.layout import LayerLayout, Layout
from pegaflow.wire.status import Status
from perf import command, echo, house, machine
from perf.machine import microseconds, percentile, verdict
from perf.peers import lookups as peers
from perf.peers.contestants import entries

NAME = "perf"
KEYS = (16, 128, 1024)
OUTSTANDING = (1, 16, 64)
COLUMNS = "while keys at_once p50 p99 p99.9 lost echo echo99 chain /echo /chain goal load".split()
ECHO_GOAL, TAIL_GOAL, BUSY_GOAL = 3.0, 2.0, 2.0
GOAL_KEYS = 128
TIMEOUT_S = 5.0
BURNER = (sys.executable, "-c", "while True: pass")


@dataclass
class Samples:
    """Seconds of one row."""

    lookups: list[float] = field(default_factory=list)
    expired: int = 0
    echoes: list[float] = field(default_factory=list)
    chains: list[float] = field(default_factory=list)


class Engine:
    """A client that looks up blocks of `chains` chains in turn, and gives every lease back."""

    def __init__(self, run_dir: Path) -> None:
        self.chains = 1
        self._chain = 0
        self.expired = 0  # lookups that session or index did not answer in time
        layout = Layout(1, (LayerLayout(0, 0, MIN_PAGE, MIN_PAGE),), "uint8")
        self._client = Client(NAME, NAME.encode() * 4, endpoint=front_desk(run_dir))
        self._client.register(layout, [np.zeros(MIN_PAGE, np.uint8)])
        if not self._client.connect(20.0):
            raise UserError(f"no session: {self._client.refusal}")

    def lookups(self, keys: int, count: int, outstanding: int) -> list[float]:
        """Seconds from each start to its answer; one that is there at once is taken at once."""
        client = self._client
        started: dict[int, float] = {}
        seconds: list[float] = []
        while len(seconds) < count:
            most = min(outstanding, count - len(seconds))
            if len(started) < most:
                self._start(keys, started)
            waits = len(started) == most
            for done in client.poll(TIMEOUT_S if waits else 0.0):
                now = time.perf_counter()
                assert isinstance(done, LookupDone)
                seconds.append(now - started.pop(done.ticket))
                if done.lease is not None and done.blocks == keys:
                    client.release(done.lease)
                elif done.status is Status.EXPIRED:
                    self.expired += 1
                else:
                    raise UserError(f"a lookup of {keys} resident keys ended with {done}")
                if outstanding == 1:
                    self._settle()
        return seconds

    def close(self) -> None:
        self._client.close()

    def _start(self, keys: int, started: dict[int, float]) -> None:
        self._chain = (self._chain + 1) % self.chains
        wanted = house.keys(keys, self._chain)
        start = time.perf_counter()
        started[self._client.start_lookup(wanted, timeout=TIMEOUT_S)] = start

    def _settle(self) -> None:
        """Until session and index have done what they were told: they answer in order."""
        self._client.lookup([bytes(32)], timeout=TIMEOUT_S)


def measure(
    engine: Engine, bare: tuple[echo.Chain, echo.Chain], keys: int, outstanding: int, count: int
) -> Samples:
    """`count` of each kind, in turns of a few."""
    samples = Samples()
    before = engine.expired
    turn = max(2 * outstanding, 50)
    while len(samples.lookups) < count:
        samples.lookups += engine.lookups(keys, turn, outstanding)
        samples.echoes += bare[0].ask(32 * keys, turn, outstanding)
        samples.chains += bare[1].ask(32 * keys, turn, outstanding)
    samples.expired = engine.expired - before
    return samples


def row(name: str, keys: int, outstanding: int, samples: Samples, rest: float) -> list[str]:
    """The samples as a row; `rest` is the p99 of the same lookups at rest, 0 if this is it."""
    p50, p99, p999 = (percentile(samples.lookups, p) for p in (50, 99, 99.9))
    bare, chain = percentile(samples.echoes, 50), percentile(samples.chains, 50)
    goal = ""
    if keys == GOAL_KEYS and outstanding == 1:
        parts = [
            f"/echo {verdict(p50 / bare, ECHO_GOAL)}",
            f"p99/p50 {verdict(p99 / p50, TAIL_GOAL)}",
        ]
        goal = f"p99/rest {verdict(p99 / rest, BUSY_GOAL)}" if rest else ", ".join(parts)
    return [
        name,
        str(keys),
        str(outstanding),
        *map(microseconds, (p50, p99, p999)),
        str(samples.expired),
        *map(microseconds, (bare, percentile(samples.echoes, 99), chain)),
        f"{p50 / bare:.2f}",
        f"{p50 / chain:.2f}",
        goal,
        machine.load(),
    ]


@contextmanager
def scraping(run_dir: Path) -> Iterator[None]:
    """Another process reads the metrics in a loop."""
    loop = (
        "import sys, urllib.request\n"
        "while True: urllib.request.urlopen(sys.argv[1], timeout=5).read()"
    )
    url = house.metrics_of(run_dir)
    with command.beside([sys.executable, "-c", loop, url]):
        yield


def scenarios(run_dir: Path) -> dict[str, Callable[[], AbstractContextManager[None]]]:
    """What else the machine does meanwhile."""
    return {
        "rest": nullcontext,
        "a core burns": lambda: command.beside(BURNER),
        "gateway busy": lambda: scraping(run_dir),
        "allocator spins": lambda: house.spinning(run_dir),
    }


def need_blocks(cases: Sequence[tuple[int, int]], blocks: int) -> None:
    """All leases of each case can be held at once.

    Raises:
        UserError: some would be cut.
    """
    keys, outstanding = max(cases, key=lambda case: case[0] * case[1])
    most = Settings.max_pinned
    least = math.ceil(keys * outstanding / most)
    if blocks < least:
        raise UserError(
            f"--blocks {blocks} is too few, {least} is the least: {outstanding} lookups at a time "
            f"lease {keys} blocks each, and one engine may hold {most:.0%} of the pool"
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few blocks, few lookups")
    parser.add_argument("--blocks", type=int, default=1_000_000)
    parser.add_argument("--lookups", type=int, default=2000, help="of each row")
    parser.add_argument("--against", help="a checkout of another version")
    given = parser.parse_args()
    if given.against:
        chains = peers.QUICK_CHAINS if given.quick else peers.CHAINS
        peers.compare(entries(given.against), chains, 50 if given.quick else given.lookups)
        return
    blocks, lookups = (4 * house.CHAIN, 50) if given.quick else (given.blocks, given.lookups)
    cases = [(k, n) for k in KEYS for n in OUTSTANDING]
    if given.quick:
        cases = cases[:2]
    need_blocks(cases, blocks)
    table = Table(*COLUMNS, box=None, caption=f"microseconds; index of {blocks} blocks")
    with house.running(blocks) as run_dir:
        engine = Engine(run_dir)
        try:
            house.fill(run_dir, house.namespace_of(NAME, run_dir), blocks)
            engine.chains = blocks // house.CHAIN
            with echo.running(run_dir.parent) as bare:
                _rows(table, engine, bare, scenarios(run_dir), cases, lookups)
        finally:
            engine.close()
    machine.show(table)


def _rows(
    table: Table,
    engine: Engine,
    bare: tuple[echo.Chain, echo.Chain],
    meanwhile: dict[str, Callable[[], AbstractContextManager[None]]],
    cases: list[tuple[int, int]],
    lookups: int,
) -> None:
    rest: dict[tuple[int, int], float] = {}
    for name, busy in meanwhile.items():
        with busy():
            for keys, outstanding in cases:
                samples = measure(engine, bare, keys, outstanding, lookups)
                before = rest.get((keys, outstanding), 0.0)
                rest.setdefault((keys, outstanding), percentile(samples.lookups, 99))
                table.add_row(*row(name, keys, outstanding, samples, before))


if __name__ == "__main__":
    command.run("perf.latency", main)
