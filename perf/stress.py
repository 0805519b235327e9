"""Find, compare every byte, and evict under it all: python -m perf.stress --seconds 600

Readers look up chains that a pool of this size does not all hold, load what they hit, compare every
byte, and save what they miss.  A greedy engine saves chains that nobody asks for twice, as fast as
it can, so that the index evicts all the time what readers look at.  Three times a minute a process
is killed: the index, the allocator, a session, a reader, or the whole group.

Hazards decide whether a block that a reader has found is still there when it is copied.  *Turned
back* counts evictions that met one: each would have taken the block from a reader.  Loads are
counted by how they ended: what a killed session was copying ends as its death is seen.  The exit
status is 1 if a byte was wrong, an exception came, a call came back late, a block that was held was
gone, or no hazard was met at all.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import time
from collections import Counter

from rich.table import Table

from pegaflow.core.errors import UserError
from pegaflow.wire.values import ALLOCATOR, INDEX, SESSION
from perf import command, machine
from perf.chaosgroup import Group, Worker, home, late, longest
from perf.chaosload import TIMEOUTS

GROUP, READER = "whole group", "reader"
VICTIMS = (INDEX, ALLOCATOR, SESSION, READER, GROUP)

POOL = "32MiB"
CHAINS = 128  # 48 MiB of blocks: a reader meets hits, misses and what is being evicted
GREEDY_CHAINS = 1 << 30  # nobody looks up one of them twice

LOOK_S = 0.5
"""From one look at the counters to the next: what was counted since dies with its process."""

GONE = ("leases_lost", "leases_refused")
"""Counters of leases whose blocks were not there when a session was to copy them."""

COUNTERS = ("blocks_evicted", "evictions_turned_back", "lookups_client", "lookups_local", *GONE)


class Stress:
    """One run."""

    def __init__(self, group: Group, readers: int, seed: int) -> None:
        self.group, self.rng = group, random.Random(seed)
        names = [f"reader-{n}" for n in range(readers)]
        self.workers = [Worker(group, name, seed + n, CHAINS) for n, name in enumerate(names)]
        self.greedy = Worker(group, "greedy", seed - 1, GREEDY_CHAINS)
        self.buried: list[Worker] = []
        self.kills: Counter[str] = Counter()
        self._counts: dict[tuple[str, str], int] = {}  # address, counter -> as last seen

    def run(self, seconds: float, between: float) -> None:
        """Kill something every so many seconds, for so long."""
        began = time.monotonic()
        plan: list[str] = []
        due = began + between
        while (now := time.monotonic()) < began + seconds:
            self._look()
            if now < due:
                time.sleep(min(LOOK_S, due - now))
                continue
            plan = plan or self.rng.sample(VICTIMS, len(VICTIMS))
            who = plan.pop()
            self._kill(who)
            self.kills[who] += 1
            due = now + between
        self._look()

    def _look(self) -> None:
        for row in self.group.rows():
            for counter in row.counters:
                if counter.name in COUNTERS:
                    self._counts[str(row.address), counter.name] = counter.value

    def _kill(self, who: str) -> None:
        if who == GROUP:
            os.killpg(self.group.pid, signal.SIGKILL)
            self.group.dead()
            self.group.start()
        elif who == READER:
            worker = self.rng.choice(self.workers)
            worker.process.kill()
            worker.end()
            self.buried.append(worker)
            self.workers.remove(worker)
            seed = self.rng.randrange(1 << 30)
            self.workers.append(Worker(self.group, worker.name, seed, CHAINS))
        else:
            state = "serving" if who == SESSION else "up"
            os.kill(self.group.one_of(who, state, self.rng).pid, signal.SIGKILL)

    def kill(self) -> None:
        """Whatever becomes of us, no engine outlives us."""
        for worker in (*self.workers, self.greedy):
            worker.process.kill()

    def end(self) -> Counter[str]:
        """Let the engines end; all sums."""
        living = (*self.workers, self.greedy)
        codes = [worker.end() for worker in living]
        sums: Counter[str] = Counter(wrong_bytes=0, loads_ok=0)
        for worker in (*living, *self.buried):
            sums.update(worker.sums)
            sums["exceptions"] += len(worker.exceptions)
        sums["exceptions"] += sum(code != 0 for code in codes)
        for (_, name), value in self._counts.items():
            sums[name] += value
        return sums

    def waits(self) -> dict[str, float]:
        """The longest wait of each call."""
        return longest((*self.workers, self.greedy, *self.buried))


def failures(sums: Counter[str], waits: dict[str, float]) -> list[str]:
    """What must not be."""
    wrong = [f"{name} {sums[name]}" for name in ("wrong_bytes", "exceptions", *GONE) if sums[name]]
    idle = [] if sums["blocks_loaded"] else ["nothing was loaded"]
    idle += [] if sums["evictions_turned_back"] else ["no eviction met a hazard"]
    return wrong + late(waits) + idle


def main() -> None:
    """Print the sums."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--between", type=float, default=20.0, help="seconds from kill to kill")
    parser.add_argument("--readers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with home(POOL, ssd=False) as group:
        group.start()
        stress = Stress(group, given.readers, given.seed)
        try:
            stress.run(given.seconds, given.between)
            sums, waits = stress.end(), stress.waits()
        finally:
            stress.kill()
    shown = Table("what", "count", box=None)
    for name, value in sorted(sums.items()):
        shown.add_row(name, str(value))
    machine.show(shown)
    kills = ", ".join(f"{who} {count}" for who, count in stress.kills.items())
    print(f"killed in {given.seconds:.0f} s: {kills or 'nothing'}")
    for call, seconds in waits.items():
        print(f"longest {call:8} {seconds:7.2f} s of {TIMEOUTS[call]:.1f} s")
    for worker in (*stress.workers, stress.greedy, *stress.buried):
        for text in worker.exceptions[:3]:
            print(text)
    wrong = failures(sums, waits)
    if wrong:
        raise UserError(", ".join(wrong))


if __name__ == "__main__":
    command.run("perf.stress", main)
