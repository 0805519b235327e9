"""What chaos is done to: a real service, its engines, and an eye on both."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pegaflow.client import inspect
from pegaflow.core.errors import UserError
from pegaflow.replay.service import stop
from pegaflow.service import signals
from pegaflow.service.rundir import front_desk
from pegaflow.service.serve import purge
from pegaflow.wire.control import ProcessRow
from pegaflow.wire.values import ALLOCATOR, INDEX, SESSION
from perf.chaosload import CHAINS, TIMEOUTS, Engine, keys
from perf.machine import ENVIRONMENT

PATIENCE_S = 30.0
"""Whatever takes longer than this to recover has not recovered."""

POOL = "64MiB"  # some 32 MiB of blocks, and spare pages of sessions: nothing evicts
POLL_S = 0.01
ASKED_AGAIN = 10  # lookups until a block counts as lost

GRACE_S = 1.0
"""What a call may be late by, on a machine whose cores are all busy."""


def wait(what: str, check: Callable[[], bool]) -> None:
    """Until this holds.

    Raises:
        UserError: it never did.
    """
    began = time.monotonic()
    while not check():
        if time.monotonic() - began > PATIENCE_S:
            raise UserError(f"not within {PATIENCE_S:g} s: {what}")
        time.sleep(POLL_S)


class Group:
    """`pegaflow serve`, started again whenever it has died."""

    def __init__(self, folder: Path, pool: str = POOL, *, ssd: bool = True) -> None:
        self.run_dir = folder / "run"
        self._pool, self._has_ssd = pool, ssd
        self.endpoint = front_desk(self.run_dir)
        self.ssd = folder / "ssd"
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The supervisor's."""
        assert self._process is not None
        return self._process.pid

    def command(self) -> list[str]:
        """The command line of the service."""
        command = [sys.executable, "-m", "pegaflow", "serve", "--run-dir", str(self.run_dir)]
        command += ["--pool-size", self._pool, "--http-addr", "127.0.0.1:0"]
        command += ["--log-format", "json"]
        return [*command, "--ssd-cache-path", str(self.ssd)] if self._has_ssd else command

    def start(self) -> None:
        """Start it, in a process group of its own."""
        with self._log.open("ab") as log, signals.held():
            self._process = subprocess.Popen(
                self.command(),
                stderr=log,
                stdin=subprocess.DEVNULL,
                process_group=0,
                env=ENVIRONMENT,
            )
        wait("the service is up", self.up)

    def rows(self) -> list[ProcessRow]:
        """Who lives."""
        report = inspect(self.endpoint, 0.5) if os.path.exists(self.endpoint) else None
        return list(report.processes) if report else []

    def up(self) -> bool:
        """Whether an engine could have a session."""
        assert self._process is not None
        if self._process.poll() is not None:
            last = self._log.read_text().splitlines()[-1:]
            raise UserError(f"the service has ended: {last}")
        states = {(row.address.name, row.state) for row in self.rows()}
        return {(ALLOCATOR, "up"), (INDEX, "up"), (SESSION, "spare")} <= states

    def one_of(self, name: str, state: str, rng: random.Random) -> ProcessRow:
        """A process of this name in this state, as soon as there is one."""
        found: list[ProcessRow] = []

        def there() -> bool:
            rows = self.rows()
            found[:] = [r for r in rows if (r.address.name, r.state) == (name, state) and r.pid]
            return bool(found)

        wait(f"a {name} that is {state}", there)
        return rng.choice(found)

    def counter(self, name: str) -> int:
        """A number of this life, summed over all processes."""
        return sum(c.value for row in self.rows() for c in row.counters if c.name == name)

    def all_written(self) -> bool:
        """Whether every block in memory is on the SSD."""
        rows = self.rows()
        now = {c.name: c.value for row in rows if row.address.name == INDEX for c in row.counters}
        written = now.get("ssd_stored_blocks", 0) >= now.get("blocks_resident", 1)
        return written and not now["ssd_backlog_blocks"] and not now["ssd_in_flight_blocks"]

    def dead(self) -> None:
        """Wait for the supervisor's end."""
        assert self._process is not None
        self._process.wait(PATIENCE_S)

    def close(self) -> None:
        """End it and remove its pool."""
        if self._process is not None:
            stop(self._process)
        purge(self.run_dir)


class Worker:
    """An engine process, and what it has said so far."""

    def __init__(self, group: Group, name: str, seed: int, chains: int = CHAINS) -> None:
        self.name, self.chains = name, chains
        self.sums: Counter[str] = Counter()
        self.waits: dict[str, float] = {}
        self.exceptions: list[str] = []
        self.sealed: dict[int, int] = {}
        command = [sys.executable, "-m", "perf.chaosload", group.endpoint, name]
        self.process = subprocess.Popen(
            [*command, str(seed), str(chains)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=ENVIRONMENT,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with suppress(json.JSONDecodeError):  # it was killed in the middle of it
                self._take(json.loads(line))

    def _take(self, said: dict[str, object]) -> None:
        if isinstance(pair := said.get("sealed"), list):
            self.sealed[pair[0]] = pair[1]
        elif isinstance(sums := said["sums"], dict):
            self.sums = Counter(sums)
            waits, exceptions = said["waits"], said["exceptions"]
            assert isinstance(waits, dict) and isinstance(exceptions, list)
            self.waits, self.exceptions = waits, exceptions

    def end(self) -> int:
        """Let it end; its exit status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = self.process.wait(PATIENCE_S)
        self._reader.join()
        return code


def longest(workers: Iterable[Worker]) -> dict[str, float]:
    """The longest wait of each call."""
    waits = [worker.waits for worker in workers]
    return {call: max(w.get(call, 0.0) for w in waits) for call in TIMEOUTS}


def late(waits: dict[str, float]) -> list[str]:
    """Calls that came back too late."""
    return [f"{c} took {s:.2f} s" for c, s in waits.items() if s > TIMEOUTS[c] + GRACE_S]


class Eye:
    """An engine of our own that looks whether everything is still there."""

    NAME = "eye"

    def __init__(self, group: Group) -> None:
        self.engine = Engine(group.endpoint, self.NAME)
        self._saves = CHAINS

    def attach(self) -> None:
        """Be served, and save the chain that is looked for after every fault."""
        wait("the eye is served", lambda: self.engine.client.connect(1.0))
        wait("the first chain is there", self._kept)

    def _kept(self) -> bool:
        names = keys(CHAINS)
        if self.lookup(CHAINS) == len(names):
            return True
        for block, key in enumerate(names):
            self.engine.compute(block, key)
        self.engine.client.save(names, list(range(len(names))), timeout=1.0)
        return False

    def lookup(self, chain: int) -> int:
        """How many blocks of a chain are hits."""
        found = self.engine.client.lookup(keys(chain), timeout=1.0)
        if found.lease is not None:
            self.engine.client.release(found.lease)
        return found.blocks

    def missing(self) -> int:
        """How many blocks of our first chain a lookup does not find."""
        return len(keys(CHAINS)) - self.lookup(CHAINS)

    def finds(self) -> bool:
        """Whether we find that chain without a message."""
        return not self.missing() and not self.engine.client.by_message

    def serves(self) -> bool:
        """Whether old blocks are found and new ones are taken."""
        if self.missing():
            return False
        key = keys(self._saves + 1)[0]
        self.engine.compute(0, key)
        done = self.engine.client.save([key], [0], timeout=1.0)
        self._saves += done.saved
        return done.saved == 1

    def lost(self, sealed: dict[int, int]) -> int:
        """How many of the blocks that were sealed are no hits any more."""
        return sum(max(0, count - self._most(chain, count)) for chain, count in sealed.items())

    def _most(self, chain: int, count: int) -> int:
        """Hits of a chain; a lookup without an answer says nothing, so it is asked again."""
        best = 0
        for _ in range(ASKED_AGAIN):
            best = max(best, self.lookup(chain))
            if best >= count:
                break
        return best

    def wrong(self, sealed: dict[int, int]) -> int:
        """How many of these blocks are not loaded as they were saved."""
        wrong = 0
        for chain, count in sealed.items():
            names = keys(chain)[:count]
            found = self.engine.client.lookup(names, timeout=1.0)
            if found.lease is None:
                continue  # lost, which is counted elsewhere
            targets = list(range(found.blocks))
            for block in targets:
                self.engine.spoil(block)
            loaded = self.engine.client.load(found.lease, targets)
            self.engine.client.release(found.lease)
            wrong += len(loaded.failed)
            for block, key in zip(targets, names, strict=False):
                wrong += block not in loaded.failed and not self.engine.holds(block, key)
        return wrong


@contextmanager
def home(pool: str = POOL, *, ssd: bool = True) -> Iterator[Group]:
    """A group that is not started yet, in a folder of its own; nothing of both is left."""
    with tempfile.TemporaryDirectory(prefix="pegaflow-chaos-") as folder:
        group = Group(Path(folder), pool, ssd=ssd)
        group.run_dir.mkdir(mode=0o700)
        try:
            yield group
        finally:
            group.close()
