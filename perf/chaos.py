"""Pull every plug, under load, and count: python -m perf.chaos

Engine processes look up, load and save over a real service and compare every byte (chaosload.py),
while members of the group, the whole group, and engines are killed and stopped, first each in each
way, then at random.  After every fault it is waited until an engine finds its old blocks and saves
new ones; then every block that any lookup has ever returned is looked up again.

    killed     SIGKILL.  A dead supervisor takes its children along, and is started again as a
               service manager would.
    stopped    SIGSTOP.  Nobody wakes a child: it has to be found and replaced.  Supervisor and
               group are woken after STOPPED_S, as a machine that slept.
    removed, replaced, started
               Names of the service's files, and a second service (chaosfiles.py).
    rebooted   All engines are killed; when all blocks are on the SSD the group is, and its memory
               is removed.  Then every block comes from the SSD.

Recovery is from the signal (of supervisor and group stopped: from the waking) to that point, the
back-off of a child that was hit again and again included.  The longest wait is that of any call of
any engine, beside the deadline that it gave.  From before the end of an index or an allocator until
all is well again an engine looks up what is in memory, again and again, and counts what it misses.
The exit status is 1 if a byte was wrong, an exception came, a sealed block was lost, something was
evicted, something in memory was missed, or a call came back late.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import time
from collections import Counter, defaultdict
from statistics import median

from rich.table import Table

from pegaflow.core.errors import UserError
from pegaflow.service.serve import purge
from pegaflow.wire.control import ProcessRow
from pegaflow.wire.values import ALLOCATOR, FLUSHER, GATEWAY, INDEX, SESSION, SUPERVISOR
from perf import chaosfiles, command, machine
from perf.chaosgroup import Eye, Group, Worker, home, late, longest, wait
from perf.chaosload import TIMEOUTS

GROUP, ENGINE, SPARE, HOST = "whole group", "engine", "spare session", "host"
KILLED, STOPPED, REBOOTED = "killed", "stopped", "rebooted"
MEMBERS = (ALLOCATOR, INDEX, FLUSHER, SESSION, SPARE, GATEWAY, SUPERVISOR, GROUP)
KILLS = [(KILLED, who) for who in (*MEMBERS, ENGINE)]
FAULTS = [*KILLS, *((STOPPED, who) for who in MEMBERS), (REBOOTED, HOST), *chaosfiles.FILE_FAULTS]

STOPPED_S = 4.0
"""Longer than a silence that gets a child killed."""

PAUSE_S = 0.3
"""Mean time of peace between two faults."""


class Chaos:
    """One run."""

    def __init__(self, group: Group, engines: int, seed: int) -> None:
        self.group = group
        self.rng = random.Random(seed)
        self.eye = Eye(group)
        self.eye.attach()
        self.workers = [Worker(group, f"engine-{n}", seed + n) for n in range(engines)]
        self.buried: list[Worker] = []
        self.recoveries: dict[tuple[str, str], list[float]] = defaultdict(list)
        self.lost = 0
        self.evicted = 0
        self.looked = self.missed = 0  # lookups in memory without an index; blocks missed in them

    def sealed(self) -> dict[int, int]:
        """Chain -> most blocks that any lookup of any engine has returned."""
        most: Counter[int] = Counter()
        for worker in (*self.workers, *self.buried):
            most |= Counter(dict(worker.sealed))
        return dict(most)

    def run(self, seconds: float, least: int) -> None:
        """Fault after fault, for so long and at least so many."""
        until = time.monotonic() + seconds
        plan = self.rng.sample(FAULTS, len(FAULTS))
        done = 0
        while plan or done < least or time.monotonic() < until:
            # Killing is quick, and what is stopped is killed in the end.
            how, who = plan.pop() if plan else self.rng.choice([*FAULTS, *KILLS, *KILLS])
            time.sleep(self.rng.expovariate(1 / PAUSE_S))
            sealed = self.sealed()
            if how != STOPPED and who in (SUPERVISOR, GROUP, HOST):  # and with it its counters
                self.evicted += self.group.counter("blocks_evicted")
            self.recoveries[how, who].append(self.hit(how, who))
            self.lost += self.eye.lost(sealed)
            done += 1
        self.evicted += self.group.counter("blocks_evicted")

    def hit(self, how: str, who: str) -> float:
        """One fault; seconds until all is well again."""
        if who in (SUPERVISOR, GROUP):
            return self._hit_all(how, who)
        if who == HOST:
            return self._reboot()
        if who == ENGINE:
            return self._kill_engine()
        if (how, who) in chaosfiles.FILE_FAULTS:
            return chaosfiles.do(how, who, self.group, self.eye.serves)
        row = self._victim(who)
        without = who in (INDEX, ALLOCATOR)
        if without:
            wait("the eye finds by itself", self.eye.finds)
        began = time.monotonic()
        os.kill(row.pid, signal.SIGKILL if how == KILLED else signal.SIGSTOP)
        name = row.address.name

        def replaced() -> bool:
            if without:
                self._look()
            rows = self.group.rows()
            others = [r for r in rows if r.address.name == name]
            if not rows or row.address in {r.address for r in others}:
                return False
            if row.engine == self.eye.NAME:
                return True  # it only asks for another one when it wants something
            if row.engine:
                return any(r.engine == row.engine and r.state == "serving" for r in others)
            return any(r.state in ("up", "spare") for r in others)

        wait(f"another {who}, {how}", replaced)
        wait(f"all is well after a {who} was {how}", self.eye.serves)
        return time.monotonic() - began

    def _look(self) -> None:
        """What is in memory is found, whoever is dead."""
        self.looked += 1
        self.missed += self.eye.missing()

    def _victim(self, who: str) -> ProcessRow:
        state = {SPARE: "spare", SESSION: "serving"}.get(who, "up")
        return self.group.one_of(SESSION if who == SPARE else who, state, self.rng)

    def _hit_all(self, how: str, who: str) -> float:
        hit = os.killpg if who == GROUP else os.kill
        pid = self.group.pid
        if how == STOPPED:
            hit(pid, signal.SIGSTOP)
            time.sleep(STOPPED_S)
            began = time.monotonic()
            hit(pid, signal.SIGCONT)
        else:
            began = time.monotonic()
            hit(pid, signal.SIGKILL)
            self.group.dead()
            self.group.start()
        wait(f"all is well after the {who} was {how}", self.eye.serves)
        return time.monotonic() - began

    def _kill_engine(self) -> float:
        """Until its session is gone, and with it all that it held."""
        worker = self.rng.choice(self.workers)
        wait("the engine is served", lambda: self._served(worker.name))
        began = time.monotonic()
        worker.process.kill()
        wait("the dead engine's session is gone", lambda: not self._served(worker.name))
        took = time.monotonic() - began
        self._replace(worker)
        return took

    def _replace(self, worker: Worker) -> None:
        worker.end()
        self.buried.append(worker)
        self.workers.remove(worker)
        self.workers.append(Worker(self.group, worker.name, self.rng.randrange(1 << 30)))

    def _reboot(self) -> float:
        for worker in self.workers:
            worker.process.kill()
        wait("the engines are gone", lambda: not any(map(self._served, self._names())))
        wait("all blocks are on the SSD", self.group.all_written)
        os.killpg(self.group.pid, signal.SIGKILL)
        self.group.dead()
        purge(self.group.run_dir)
        began = time.monotonic()
        self.group.start()
        wait("all is well after the host was rebooted", self.eye.serves)
        took = time.monotonic() - began
        for worker in list(self.workers):
            self._replace(worker)
        return took

    def _names(self) -> list[str]:
        return [worker.name for worker in self.workers]

    def _served(self, name: str) -> bool:
        return any(row.engine == name for row in self.group.rows())

    def kill(self) -> None:
        """Whatever becomes of us, no engine outlives us."""
        for worker in self.workers:
            worker.process.kill()

    def end(self) -> dict[str, int]:
        """Let the engines end, and look at every byte once more; all sums."""
        codes = [worker.end() for worker in self.workers]
        sums: Counter[str] = Counter()
        for worker in (*self.workers, *self.buried):
            sums.update(worker.sums)
            sums["exceptions"] += len(worker.exceptions)
        sums["exceptions"] += sum(code != 0 for code in codes)
        sealed = self.sealed()
        sums["sealed"] = sum(sealed.values())
        sums["lost"] = self.lost + self.eye.lost(sealed)
        sums["wrong_bytes"] += self.eye.wrong(sealed)
        sums["evicted"] = self.evicted
        sums["looked_without"], sums["missed_without"] = self.looked, self.missed
        self.eye.engine.client.close()
        return dict(sums)

    def waits(self) -> dict[str, float]:
        """The longest wait of each call."""
        return longest((*self.workers, *self.buried))


def table(chaos: Chaos) -> Table:
    """Faults by kind and actor, and how long each took to recover from."""
    shown = Table("actor", "fault", "times", "recovery p50", "max", box=None)
    for (how, who), seconds in sorted(chaos.recoveries.items(), key=lambda item: item[0][::-1]):
        figures = (f"{median(seconds):.2f} s", f"{max(seconds):.2f} s")
        shown.add_row(who, how, str(len(seconds)), *figures)
    return shown


def failures(sums: dict[str, int], waits: dict[str, float]) -> list[str]:
    """What must not be."""
    wrong = [f"{name} {sums[name]}" for name in BAD if sums[name]]
    idle = [] if sums.get("blocks_loaded") and sums["sealed"] else ["nothing was loaded"]
    return wrong + late(waits) + idle


BAD = ("wrong_bytes", "exceptions", "lost", "evicted", "missed_without")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--faults", type=int, default=20, help="at least so many")
    parser.add_argument("--engines", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    began = time.monotonic()
    with home() as group:
        group.start()
        chaos = Chaos(group, given.engines, given.seed)
        try:
            chaos.run(given.seconds, given.faults)
            sums, waits = chaos.end(), chaos.waits()
        finally:
            chaos.kill()
    machine.show(table(chaos))
    count = sum(map(len, chaos.recoveries.values()))
    print(f"{count} faults in {time.monotonic() - began:.0f} s under {given.engines} engines")
    for name, value in sums.items():
        print(f"{name:15} {value:>8}")
    for call, seconds in waits.items():
        print(f"longest {call:8} {seconds:7.2f} s of {TIMEOUTS[call]:.1f} s")
    wrong = failures(sums, waits)
    for worker in (*chaos.workers, *chaos.buried):
        for text in worker.exceptions[:3]:
            print(text)
    if wrong:
        raise UserError(", ".join(wrong))


if __name__ == "__main__":
    command.run("perf.chaos", main)
